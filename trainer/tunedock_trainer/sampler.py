"""Which examples make up which step: a pure function of seed and step."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from .losses import Item


@dataclass(frozen=True)
class Source:
    """The items of one training file. `weight` 0.5 shows half of them in an epoch, 2 all of them twice."""

    items: Sequence[Item]
    weight: float = 1.0

    @property
    def per_epoch(self) -> int:
        return max(1, round(len(self.items) * self.weight))

    def shown(self, rng: random.Random) -> list[Item]:
        """The items of one epoch, in file order where whole."""
        whole, part = divmod(self.per_epoch, len(self.items))
        return [*self.items] * whole + rng.sample(list(self.items), part)


@dataclass
class Sampler:
    """Every epoch is a new permutation; the last batch of an epoch may be smaller."""

    sources: Sequence[Source]
    batch_size: int
    seed: int
    _epoch: tuple[int, list[Item]] = field(default=(-1, []), repr=False)

    @property
    def per_epoch(self) -> int:
        return sum(source.per_epoch for source in self.sources)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.per_epoch / self.batch_size)

    def batch(self, step: int) -> list[Item]:
        """The items of the step after `step` finished ones."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        return order[number * self.batch_size : (number + 1) * self.batch_size]

    def _order(self, epoch: int) -> list[Item]:
        if self._epoch[0] != epoch:
            rng = random.Random(f"order:{self.seed}:{epoch}")  # noqa: S311  # not for secrets
            items = [item for source in self.sources for item in source.shown(rng)]
            rng.shuffle(items)
            self._epoch = (epoch, items)
        return self._epoch[1]
