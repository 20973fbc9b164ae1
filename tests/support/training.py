"""A tiny random base in float32 and short words for training on it."""

from __future__ import annotations

import functools
import os
import random
import tempfile
from pathlib import Path

import torch
from tunedock_registry.models.facts import BaseFacts
from tunedock_trainer.adapter import Adapter
from tunedock_trainer.base import Base, load_base
from tunedock_trainer.lora import adapted_modules
from tunedock_trainer.losses import Item, Tally
from tunedock_trainer.rows import Tokens
from tunedock_trainer.sampler import Sampler, Source
from tunedock_trainer.settings import LoraConfig, OptimConfig, RunConfig
from tunedock_trainer.together import Wanted, backward
from tunedock_trainer.trainee import StepResult, Trainee

from .models import tiny_llama

VOCAB = 512


@functools.cache
def tiny_path(vocab: int | None = VOCAB) -> Path:
    """A folder with a random two-layer Llama; made once for this process and its children."""
    folder = os.environ.setdefault(f"TUNEDOCK_TEST_TINY_{vocab}", tempfile.mkdtemp(prefix="td-tiny-"))
    path = Path(folder) / "tiny"
    return path if (path / "model.safetensors").is_file() else tiny_llama(path, vocab=vocab)


@functools.cache
def tiny_base() -> Base:
    return load_base(tiny_path(), "tiny", max_rank=64, dtype=torch.float32)


def facts() -> BaseFacts:
    return tiny_base().facts


def tokens(length: int, seed: int, labels: int | None = None) -> Tokens:
    """Random token ids; the last `labels` (half of them when None) are trained."""
    rng = random.Random(seed)
    trained = length // 2 if labels is None else labels
    return Tokens(
        tuple(rng.randrange(10, VOCAB) for _ in range(length)),
        tuple([0.0] * (length - trained) + [1.0] * trained),
    )


def items(count: int, seed: int = 0) -> list[Item]:
    return [Item((tokens(6 + (seed + number) % 9, seed * 1000 + number),)) for number in range(count)]


def config(**changes: object) -> RunConfig:
    lora = LoraConfig(rank=4, alpha=8)
    optim = OptimConfig(learning_rate=1e-2)
    values: dict[str, object] = {"n_epochs": 2, "batch_size": 4, "lora": lora, "optim": optim, **changes}
    return RunConfig.model_validate(values)


def trainee(run: RunConfig, data: list[Item], base: Base | None = None) -> Trainee:
    base = base or tiny_base()
    sampler = Sampler([Source(data)], run.batch_size, run.seed)
    return Trainee(base, run, adapted_modules(run.lora, base.facts), sampler)


def gradients(one: Trainee, batch: list[Item]) -> Tally:
    """Adds the gradients of the batch's mean loss."""
    return backward([Wanted(one, batch)], one.config.max_tokens)[0]


def step(one: Trainee) -> StepResult:
    """One whole optimizer step."""
    return one.finish_step(gradients(one, one.next_batch()))


def busy_adapter(seed: int = 3, rank: int = 4, scale: float = 0.05) -> Adapter:
    """An adapter whose A and B are both random: it changes what the base says."""
    base = tiny_base()
    lora = LoraConfig(rank=rank, alpha=2 * rank)
    adapter = Adapter(base.groups, adapted_modules(lora, base.facts), dtype=base.dtype)
    adapter.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for _, b in adapter.tensors().values():
        b.copy_(torch.randn(b.shape, generator=generator) * scale)
    adapter.refresh()
    return adapter
