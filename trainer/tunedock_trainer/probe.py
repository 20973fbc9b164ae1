"""The golden probe: what the trainer's own forward pass says about held-out examples, for the gate to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tunedock_api.manifest import Probe, ProbeExample

from .adapter import Adapter
from .base import Base
from .losses import Item
from .rows import Tokens

NUM_EXAMPLES = 8
MAX_TOKENS = 512


@torch.no_grad()
def make_probe(base: Base, adapter: Adapter, items: Sequence[Item]) -> Probe:
    """`adapter` must hold the exported file's numbers. Scores every token from the first trained one on."""
    examples = [_shortened(item.sequences[0]) for item in spread(items, NUM_EXAMPLES)]
    return Probe(dtype=str(base.dtype).removeprefix("torch."), examples=tuple(_score(base, adapter, examples)))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly over the whole list."""
    step = max(1, len(items) // count)
    return list(items[::step][:count])


def _shortened(tokens: Tokens) -> Tokens:
    """At most MAX_TOKENS around the first trained token, everything after it scored."""
    first = next(position for position in range(1, len(tokens)) if tokens.weights[position] > 0)
    begin = max(0, first - MAX_TOKENS // 2)
    ids = tokens.token_ids[begin : begin + MAX_TOKENS]
    return Tokens(ids, tuple(float(position >= first - begin) for position in range(len(ids))))


def _score(base: Base, adapter: Adapter, examples: Sequence[Tokens]) -> Iterable[ProbeExample]:
    for tokens in examples:
        rows = base.new_pass([tokens])
        with base.running(rows, [adapter]):
            tuned = base.scores(rows)
        with base.running(rows):
            plain = base.scores(rows)
        yield ProbeExample(
            token_ids=tokens.token_ids,
            start=len(tokens) - tokens.num_labels,
            adapter_logprobs=_numbers(tuned.logprobs_M),
            base_logprobs=_numbers(plain.logprobs_M),
            adapter_top1=tuple(tuned.top1_M.tolist()),
        )


def _numbers(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(min(0.0, value), 6) for value in values.tolist())
