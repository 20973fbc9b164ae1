// A small TuneDock client: the stubs come from the protos, this file only makes them pleasant.
import { createHash } from "node:crypto";
import { basename, dirname, resolve } from "node:path";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

import type { ProtoGrpcType as AdaptersTypes } from "./generated/adapters.js";
import type { ProtoGrpcType as FineTuningTypes } from "./generated/fine_tuning.js";
import type { ProtoGrpcType as InferenceTypes } from "./generated/inference.js";
import type { AdaptersClient } from "./generated/tunedock_api/v1/Adapters.js";
import type { Alias__Output } from "./generated/tunedock_api/v1/Alias.js";
import type { File__Output } from "./generated/tunedock_api/v1/File.js";
import type { FineTuningClient } from "./generated/tunedock_api/v1/FineTuning.js";
import type { GenerateChunk__Output } from "./generated/tunedock_api/v1/GenerateChunk.js";
import type { InferenceClient } from "./generated/tunedock_api/v1/Inference.js";
import type { Job__Output } from "./generated/tunedock_api/v1/Job.js";
import type { JobEvent__Output } from "./generated/tunedock_api/v1/JobEvent.js";
import type { ListModelsResponse__Output } from "./generated/tunedock_api/v1/ListModelsResponse.js";

const PROTOS = resolve(dirname(fileURLToPath(import.meta.url)), "../../../protos");
const FILES = ["inference", "fine_tuning", "adapters"].map((name) => `tunedock_api/v1/${name}.proto`);
const CHUNK_BYTES = 1 << 20;

type Types = InferenceTypes & FineTuningTypes & AdaptersTypes;
type Answer<T> = (error: grpc.ServiceError | null, answer?: T) => void;

/** One unary call as a promise. */
function unary<T>(call: (answer: Answer<T>) => unknown): Promise<T> {
  return new Promise((done, failed) => call((error, answer) => (error ? failed(error) : done(answer as T))));
}

export class TuneDock {
  private readonly inference: InferenceClient;
  private readonly fineTuning: FineTuningClient;
  private readonly adapters: AdaptersClient;
  private readonly metadata = new grpc.Metadata();

  constructor(target: string, apiKey?: string) {
    const options = { keepCase: true, longs: Number, defaults: true, oneofs: true, includeDirs: [PROTOS] };
    const loaded = grpc.loadPackageDefinition(protoLoader.loadSync(FILES, options)) as unknown as Types;
    const { Inference, FineTuning, Adapters } = loaded.tunedock_api.v1;
    const credentials = grpc.credentials.createInsecure();
    this.inference = new Inference(target, credentials);
    this.fineTuning = new FineTuning(target, credentials);
    this.adapters = new Adapters(target, credentials);
    if (apiKey) this.metadata.set("authorization", `Bearer ${apiKey}`);
  }

  /** The base model is the one without a parent. */
  async baseModel(): Promise<string> {
    const models = await unary<ListModelsResponse__Output>((answer) =>
      this.inference.ListModels({}, this.metadata, answer),
    );
    return models.data.find((model) => !model.parent)?.id ?? "";
  }

  /** The pieces of an answer. Leaving the loop cancels the call and frees its sequence on the server. */
  async *stream(model: string, question: string, maxTokens = 64): AsyncGenerator<GenerateChunk__Output> {
    const call = this.inference.StreamChat(
      { model, messages: [{ role: "user", content: question }], sampling: { max_tokens: maxTokens, temperature: 0 } },
      this.metadata,
    );
    try {
      for await (const part of call) yield part as GenerateChunk__Output;
    } finally {
      call.cancel();
    }
  }

  /** Uploads a JSONL file; the service checks its sha256. */
  async upload(path: string): Promise<File__Output> {
    const bytes = await readFile(path);
    const upload = await unary<{ upload_id: string }>((answer) =>
      this.fineTuning.StartUpload(
        { filename: basename(path), size_bytes: bytes.length, purpose: "fine-tune" },
        this.metadata,
        answer as never,
      ),
    );
    return unary<File__Output>((answer) => {
      const call = this.fineTuning.UploadFile(this.metadata, answer as never);
      const sha256 = createHash("sha256").update(bytes).digest("hex");
      call.write({ upload_id: upload.upload_id, sha256 });
      for (let start = 0; start < bytes.length; start += CHUNK_BYTES) {
        call.write({ data: bytes.subarray(start, start + CHUNK_BYTES) });
      }
      call.end();
    });
  }

  /** Starts a job whose result is the next version of `adapter`. */
  tune(model: string, trainingFile: string, adapter: string): Promise<Job__Output> {
    const tunedock = { fields: { adapter: { stringValue: adapter, kind: "stringValue" as const } } };
    return unary<Job__Output>((answer) =>
      this.fineTuning.CreateJob({ model, training_file: trainingFile, tunedock }, this.metadata, answer as never),
    );
  }

  /** The job's events, oldest first, until it has ended. */
  async *watch(jobId: string): AsyncGenerator<JobEvent__Output> {
    for await (const event of this.fineTuning.WatchJob({ id: jobId }, this.metadata)) yield event as JobEvent__Output;
  }

  job(id: string): Promise<Job__Output> {
    return unary<Job__Output>((answer) => this.fineTuning.GetJob({ id }, this.metadata, answer as never));
  }

  /** Points `alias` of an adapter at one version. */
  promote(name: string, version: number, alias: string): Promise<Alias__Output> {
    return unary<Alias__Output>((answer) =>
      this.adapters.SetAlias({ name, version, alias, reason: "from TypeScript" }, this.metadata, answer as never),
    );
  }

  close(): void {
    for (const client of [this.inference, this.fineTuning, this.adapters]) client.close();
  }
}
