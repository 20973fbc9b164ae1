"""An automatic validation set: whole clusters of duplicates go to one side, so that nothing is learned by heart and praised."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from .duplicates import clusters
from .examples import Example

MIN_FOR_SPLIT = 10
_MAX_VALIDATION = 500


def auto_fraction(num_examples: int) -> float:
    """10 %, falling to 5 % for large sets and at most 500 examples; 0 below ten examples."""
    if num_examples < MIN_FOR_SPLIT:
        return 0.0
    share = 0.1 if num_examples < 1_000 else 0.05
    return min(share, _MAX_VALIDATION / num_examples)


def held_out(
    examples: Sequence[Example], asked: float | Literal["auto"], seed: int
) -> tuple[list[Example], list[Example]]:
    """`split` as a job asks for it (knob `validation_split`): trainer and evaluation hold back the same examples."""
    return split(examples, auto_fraction(len(examples)) if asked == "auto" else asked, seed)


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, validation), both in file order; the same for the same examples, fraction and seed.

    The validation set holds about `fraction` of the examples, less when the clusters are too large to fit; at least one
    example stays for training.
    """
    wanted = min(len(examples) - 1, max(1, round(len(examples) * fraction))) if fraction > 0 else 0
    held = _held(clusters(examples), wanted, seed) if wanted > 0 else set()
    train = [example for number, example in enumerate(examples) if number not in held]
    return train, [examples[number] for number in sorted(held)]


def _held(cluster_of: Sequence[int], wanted: int, seed: int) -> set[int]:
    """Takes clusters in random order while they fit."""
    members: dict[int, list[int]] = {}
    for number, cluster in enumerate(cluster_of):
        members.setdefault(cluster, []).append(number)
    order = list(members.values())
    random.Random(f"split:{seed}").shuffle(order)  # noqa: S311  # not for secrets
    held: set[int] = set()
    for group in order:
        if len(held) + len(group) <= wanted:
            held.update(group)
    return held
