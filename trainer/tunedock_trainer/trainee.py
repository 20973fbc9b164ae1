"""One adapter in training: its weights, its optimizer and its place in the data. Knows no job and no registry."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .adapter import Adapter, ModuleLora
from .base import Base
from .losses import Item, Tally, loss_of, normaliser, sequence_logprobs
from .optim import Optimizer, learning_rate
from .passes import cut
from .sampler import Sampler
from .settings import RunConfig


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: the batch's mean loss before it, and what it cost."""

    step: int
    tally: Tally
    learning_rate: float
    grad_norm: float


class Trainee:
    """`step` counts finished optimizer steps; the next batch follows from it alone, so a resumed run repeats nothing."""

    def __init__(self, base: Base, config: RunConfig, modules: Sequence[ModuleLora], sampler: Sampler) -> None:
        self.base, self.config, self.sampler = base, config, sampler
        self.adapter = Adapter(
            base.groups, modules, dtype=base.dtype, served_dtype=base.served_dtype, device=base.device
        )
        self.adapter.initialise(config.seed)
        self.optimizer = Optimizer(self.adapter, config.optim)
        self.step = 0

    @property
    def total_steps(self) -> int:
        return self.config.n_epochs * self.sampler.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.sampler.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.step > 0 and self.step % self.sampler.steps_per_epoch == 0

    def next_batch(self) -> list[Item]:
        return self.sampler.batch(self.step)

    def finish_step(self, tally: Tally) -> StepResult:
        """The optimizer's step, with the gradients that are there; `tally` is passed on."""
        self.step += 1
        rate = learning_rate(self.step, self.total_steps, self.config.optim)
        norm = self.optimizer.step(rate)
        return StepResult(self.step, tally, rate, norm)

    @torch.no_grad()
    def evaluate(self, items: Sequence[Item]) -> Tally:
        """Mean loss over all `items` with the present weights (token mean, or pair mean for DPO)."""
        tally, divisor = Tally(), normaliser(items, self.config.objective)
        for part in cut(items, self.config.max_tokens):
            rows = self.base.new_pass(part.sequences, packing=self.config.packing)
            with self.base.running(rows, [self.adapter]):
                scored = self.base.scores(rows)
            own = self.config
            tally.add(loss_of(scored, rows.labels, part.items, own.objective, divisor, own.beta)[1])
        return tally

    @torch.no_grad()
    def with_reference(self, items: Sequence[Item]) -> list[Item]:
        """`items` with the log-probabilities of the present weights as the reference: call it before the first step, when
        the adapter is its parent, or the base (B is zero)."""
        found: dict[int, Item] = {}
        for part in cut(items, self.config.max_tokens):
            rows = self.base.new_pass(part.sequences, packing=self.config.packing)
            with self.base.running(rows, [self.adapter]):
                sums = sequence_logprobs(self.base.scores(rows), rows.labels).view(-1, 2).tolist()
            for number, pair in zip(part.numbers, sums, strict=True):
                found[number] = replace(items[number], reference=tuple(pair))
        return [found[number] for number in range(len(items))]

    def generator(self, part: int) -> torch.Generator | None:
        """For the dropout of one pass; it depends on seed, step and part alone, so that a resumed run draws the same."""
        if not self.config.lora.dropout:
            return None
        seed = random.Random(f"dropout:{self.config.seed}:{self.step}:{part}").getrandbits(63)  # noqa: S311  # not for secrets
        return torch.Generator(device=self.base.device).manual_seed(seed)
