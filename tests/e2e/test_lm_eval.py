"""lm-eval, unmodified, measures a served model through `/v1/completions` (`echo` with `logprobs`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from support.live_server import BASE, Live
from support.models import default_model_path
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parent / "lm_eval"
TASK = "tunedock_capitals"


def test_a_task_file_of_ours_scores_as_transformers_does(live: Live, tmp_path: Path) -> None:
    task = (FOLDER / "capitals.yaml").read_text()
    files = json.dumps({"data_files": {"test": str(FOLDER / "capitals.jsonl")}})
    (tmp_path / "capitals.yaml").write_text(f"{task}dataset_kwargs: {files}\n")
    samples = measured(live, tmp_path)
    assert len(samples) == 8
    by_question = {sample["doc"]["question"]: [float(one[0]) for one in sample["filtered_resps"]] for sample in samples}
    reference = Reference()
    worst = max(
        abs(ours - reference.score(question, choice))
        for question, choices in documents()
        for ours, choice in zip(by_question[question], choices, strict=True)
    )
    # The engine may compute in bfloat16: up to 0.19 nats a token, two to four tokens a choice.
    assert worst < 0.8
    assert sum(sample["acc"] for sample in samples) >= 6


def measured(live: Live, folder: Path) -> list[dict[str, Any]]:
    """The logged samples of one lm-eval run in a process of its own."""
    where = f"model={BASE},base_url={live.server.base_url}/completions,num_concurrent=4,max_retries=1"
    arguments = f"{where},tokenizer={default_model_path()},tokenizer_backend=huggingface,tokenized_requests=True"
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments),
        *("--tasks", TASK, "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"),
    ]
    # Everything is on this disk; caches stay in the test's folder.
    environment = {**os.environ, "OPENAI_API_KEY": "any", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (logged,) = (folder / "out").rglob(f"samples_{TASK}*.jsonl")
    return [json.loads(line) for line in logged.read_text().splitlines()]


def documents() -> list[tuple[str, list[str]]]:
    rows = map(json.loads, (FOLDER / "capitals.jsonl").read_text().splitlines())
    return [(row["question"], row["choices"]) for row in rows]


class Reference:
    """The same model in transformers and float32."""

    def __init__(self) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(default_model_path())

    def score(self, question: str, choice: str) -> float:
        """Log-likelihood of the choice after the question."""
        start = len(self._tokenizer.encode(question))
        ids = torch.tensor([self._tokenizer.encode(f"{question} {choice}")])
        with torch.no_grad():
            logprobs = self._model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        return float(logprobs.gather(1, ids[0, start:, None]).sum())
