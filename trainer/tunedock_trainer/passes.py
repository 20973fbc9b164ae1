"""Cuts a batch into forward passes of bounded size. Items are sorted by length, so that attention grids fill well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .losses import Item
from .rows import Tokens


@dataclass(frozen=True)
class Cut:
    """The items of one pass; `numbers` are their places in the batch."""

    numbers: tuple[int, ...]
    items: tuple[Item, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)

    @property
    def sequences(self) -> tuple[Tokens, ...]:
        return tuple(sequence for item in self.items for sequence in item.sequences)


def cut(batch: Sequence[Item], max_tokens: int) -> Iterator[Cut]:
    """Passes of at most `max_tokens` tokens, or one item when that alone is longer."""
    numbers: list[int] = []
    used = 0
    for number in sorted(range(len(batch)), key=lambda n: batch[n].num_tokens):
        size = batch[number].num_tokens
        if numbers and used + size > max_tokens:
            yield _cut(batch, numbers)
            numbers, used = [], 0
        numbers.append(number)
        used += size
    if numbers:
        yield _cut(batch, numbers)


def _cut(batch: Sequence[Item], numbers: Sequence[int]) -> Cut:
    return Cut(tuple(numbers), tuple(batch[number] for number in numbers))
