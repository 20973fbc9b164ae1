"""One arm of the training benchmark, in a process of its own: prints its figures as one line of JSON.

python -m benchmarks.train_arms ours|trl-default|trl-tuned|trl-unpacked|together --steps 10
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BATCH, RANK, ALPHA, RATE, SEED = 16, 16, 32, 2e-3, 1
WARM_STEPS = 2
NUM_JOBS, SMALL_BATCH = 4, 2
QUEUE = (16, 8, 4, 2)  # steps of jobs that wait in a queue, the longest in front
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DATA = Path(__file__).parents[1] / "examples" / "dates" / "train.jsonl"


@dataclass(frozen=True)
class Outcome:
    """`tokens` and `seconds` of every measured step (padding not counted); `first_loss` is of the first batch."""

    arm: str
    tokens: list[int]
    seconds: list[float]
    first_loss: float
    peak_rss_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


@dataclass(frozen=True)
class Shared:
    """Seconds of one step of every job: of each alone, summed up, and of all in shared passes.

    `queue_*_s`: seconds until a job of `QUEUE` is done, the mean of them, one value a repetition.
    """

    apart_s: list[float]
    together_s: list[float]
    queue_apart_s: list[float]
    queue_together_s: list[float]


def examples(count: int, model: Path) -> list[dict[str, list[Any]]]:
    """Token ids and loss weights of the first `count` rows, the same for every arm."""
    from tunedock_registry.data.examples import PreferenceExample
    from tunedock_registry.data.formats import read_examples
    from tunedock_registry.models.tokenizer import load_renderer

    renderer = load_renderer(model)
    with DATA.open("rb") as stream:
        rows = [example for example in read_examples(stream) if not isinstance(example, PreferenceExample)][:count]
    rendered = [renderer.render(row)[0] for row in rows]
    return [{"token_ids": one.token_ids, "weights": one.weights} for one in rendered]


def trainees(model: Path, count: int, batch_size: int, num_examples: int) -> list[Any]:
    """`count` of our trainees on one base, with seeds of their own."""
    from tunedock_registry.imports import leave_out_unused
    from tunedock_trainer import machine

    machine.keep_memory_warm()
    machine.spin_briefly()
    leave_out_unused(cuda=torch_has_cuda())
    from tunedock_trainer.base import load_base
    from tunedock_trainer.lora import adapted_modules
    from tunedock_trainer.losses import Item
    from tunedock_trainer.rows import Tokens
    from tunedock_trainer.sampler import Sampler, Source
    from tunedock_trainer.settings import LoraConfig, OptimConfig, RunConfig
    from tunedock_trainer.trainee import Trainee

    base = load_base(model, "bench", max_rank=64)
    rows = examples(num_examples, model)
    items = [Item((Tokens(tuple(row["token_ids"]), tuple(row["weights"])),)) for row in rows]
    lora, optim = LoraConfig(rank=RANK, alpha=ALPHA), OptimConfig(learning_rate=RATE)
    runs = [
        RunConfig(n_epochs=1, batch_size=batch_size, seed=SEED + number, lora=lora, optim=optim)
        for number in range(count)
    ]
    modules = adapted_modules(lora, base.facts)
    return [Trainee(base, run, modules, Sampler([Source(items)], batch_size, run.seed)) for run in runs]


def torch_has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def ours(model: Path, steps: int) -> Outcome:
    """Our loop as the trainer runs it."""
    [trainee] = trainees(model, 1, BATCH, BATCH * (steps + WARM_STEPS))
    from tunedock_trainer.together import Wanted, backward

    items = trainee.sampler.sources[0].items
    tokens, seconds, losses = [], [], []
    for number in range(steps + WARM_STEPS):
        began = time.perf_counter()
        batch = items[number * BATCH : (number + 1) * BATCH]
        result = trainee.finish_step(backward([Wanted(trainee, batch)], trainee.config.max_tokens)[0])
        seconds.append(time.perf_counter() - began)
        tokens.append(result.tally.num_tokens)
        losses.append(result.tally.loss)
    return Outcome("ours", tokens[WARM_STEPS:], seconds[WARM_STEPS:], losses[0], _peak())


def together(model: Path, steps: int) -> Shared:
    """Four jobs with batches of `SMALL_BATCH`: one after the other, and side by side, in turns."""
    repetitions = max(1, steps // 5)
    needed = 2 * (steps + WARM_STEPS) + 2 * repetitions * QUEUE[0]
    crew = trainees(model, NUM_JOBS, SMALL_BATCH, SMALL_BATCH * needed)
    apart, shared = [], []
    for _ in range(steps + WARM_STEPS):
        began = time.perf_counter()
        for one in crew:
            step([one])
        apart.append(time.perf_counter() - began)
        began = time.perf_counter()
        step(crew)
        shared.append(time.perf_counter() - began)
    queues = [(queue(crew, False), queue(crew, True)) for _ in range(repetitions)]
    return Shared(apart[WARM_STEPS:], shared[WARM_STEPS:], *([*column] for column in zip(*queues, strict=True)))


def step(crew: list[Any]) -> None:
    """One step of each, in shared passes."""
    from tunedock_trainer.together import Wanted, backward

    tallies = backward([Wanted(one, one.next_batch()) for one in crew], crew[0].config.max_tokens)
    for one, tally in zip(crew, tallies, strict=True):
        one.finish_step(tally)


def queue(crew: list[Any], shared: bool) -> float:
    """Mean seconds until a job of the queue is done: all side by side from the beginning, or one after the other."""
    began, ended, left = time.perf_counter(), [], dict(zip(range(NUM_JOBS), QUEUE, strict=True))
    while left:
        working = list(left) if shared else [next(iter(left))]
        step([crew[number] for number in working])
        for number in working:
            left[number] -= 1
            if not left[number]:
                del left[number]
                ended.append(time.perf_counter() - began)
    return sum(ended) / len(ended)


# What each arm sets beside the batch. Its documentation offers packing; without it, short rows may be faster on a CPU.
TRL: dict[str, dict[str, Any]] = {
    "trl-default": {"per_device_train_batch_size": BATCH},
    "trl-tuned": {
        "per_device_train_batch_size": 1,
        "packing": True,
        "max_length": 1024,
        "gradient_checkpointing": False,
    },
    "trl-unpacked": {"per_device_train_batch_size": BATCH, "gradient_checkpointing": False},
}


def trl(model: Path, steps: int, arm: str) -> Outcome:
    """SFTTrainer with its defaults (a model by its name loads in float32), or tuned: weights in the dtype that this processor is
    fastest with, no recomputation."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from tunedock_registry.processor import multiplies_bfloat16

    chosen = TRL[arm]
    rows = examples(BATCH * (steps + WARM_STEPS) * (2 if "packing" in chosen else 1), model)
    data = Dataset.from_dict(
        {
            "input_ids": [row["token_ids"] for row in rows],
            "labels": [
                [t if w else -100 for t, w in zip(row["token_ids"], row["weights"], strict=True)] for row in rows
            ],
        }
    )
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=steps + WARM_STEPS, learning_rate=RATE, logging_steps=1, report_to="none",
        save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential", seed=SEED, use_cpu=not torch.cuda.is_available(),
        **chosen,
    )  # fmt: skip
    tuned = arm != "trl-default"
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype) if tuned else str(model)
    clock = _step_clock()
    trainer = SFTTrainer(
        model=loaded,
        args=arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    seen = [0, *(int(entry["num_tokens"]) for entry in logs)]
    tokens = [after - before for before, after in itertools.pairwise(seen)]
    return Outcome(arm, tokens[WARM_STEPS:], clock.seconds[WARM_STEPS:], float(logs[0]["loss"]), _peak())


def _step_clock() -> Any:
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):  # type: ignore[misc]  # untyped upstream
        """Seconds of every optimizer step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self._began)

    return StepClock()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=("ours", *TRL, "together"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    outcome: Outcome | Shared
    if options.arm == "ours":
        outcome = ours(options.model, options.steps)
    elif options.arm == "together":
        outcome = together(options.model, options.steps)
    else:
        outcome = trl(options.model, options.steps, options.arm)
    print(json.dumps(asdict(outcome)), file=sys.__stdout__)


if __name__ == "__main__":
    main()
