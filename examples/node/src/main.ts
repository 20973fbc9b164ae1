// Upload, tune, watch, promote, ask:  node dist/main.js 127.0.0.1:8001 data.jsonl dates "The lease ends on 1 March 2027."
import { TuneDock } from "./tunedock.js";

const [target = "127.0.0.1:8001", data, adapter = "from-node", question = "Hello"] = process.argv.slice(2);
const dock = new TuneDock(target, process.env.TUNEDOCK_API_KEY);

async function ask(model: string): Promise<void> {
  let text = "";
  let answeredBy = "";
  let tokens = 0;
  for await (const part of dock.stream(model, question)) {
    answeredBy ||= part.model;
    text += part.choices.map((choice) => choice.text).join("");
    tokens = part.usage?.completion_tokens ?? tokens;
  }
  console.log(JSON.stringify({ model: answeredBy, text, tokens }));
}

try {
  const base = await dock.baseModel();
  await ask(base);
  if (data) {
    const file = await dock.upload(data);
    const started = await dock.tune(base, file.id, adapter);
    for await (const event of dock.watch(started.id)) console.error(event.message);
    const job = await dock.job(started.id);
    if (job.status !== "succeeded") throw new Error(`${job.id} ${job.status}: ${job.error?.message ?? ""}`);
    const [name = "", version = ""] = (job.fine_tuned_model ?? "").split("@");
    const alias = await dock.promote(name, Number(version), "canary");
    console.log(JSON.stringify({ alias: alias.alias, version: alias.targets[0]?.version, revision: alias.revision }));
    await ask(`${name}@canary`);
  }
} catch (error) {
  console.error(`error: ${(error as { details?: string }).details ?? String(error)}`);
  process.exitCode = 1;
} finally {
  dock.close();
}
