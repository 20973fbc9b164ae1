"""Batches of several adapters through one base: forward and backward once, gradients and losses apart.

A pass holds parts of the batches of different trainees side by side; `linear` applies each adapter to its own rows, so a
trainee's loss and gradients are those of its solo run. What is shared is the cost that does not grow with the tokens,
about a tenth of a second a pass on CPU: most of the time of a job with small batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .head import Scored
from .losses import Item, Tally, loss_of, normaliser
from .passes import Cut, cut
from .rows import Labels, Pass
from .trainee import Trainee


@dataclass(frozen=True)
class Wanted:
    """A trainee's request for the gradients of one batch."""

    trainee: Trainee
    batch: Sequence[Item]


@dataclass(frozen=True)
class _Part:
    """Items of one trainee in one pass. `owner` is its place in the list of requests."""

    owner: int
    cut: Cut


def backward(wanted: Sequence[Wanted], max_tokens: int) -> list[Tally]:
    """Adds the gradients of each batch's mean loss to its trainee's adapter; returns the tallies in the same order."""
    tallies = [Tally() for _ in wanted]
    divisors = [normaliser(one.batch, one.trainee.config.objective) for one in wanted]
    for parts in _shared(wanted, max_tokens):
        for part, tally in zip(parts, _one_pass(wanted, parts, divisors), strict=True):
            tallies[part.owner].add(tally)
    return tallies


def _shared(wanted: Sequence[Wanted], max_tokens: int) -> Iterator[list[_Part]]:
    """Passes of at most `max_tokens` tokens. Batches with dropout or without packing have passes of their own."""
    open_parts: list[_Part] = []
    used = 0
    for owner, one in enumerate(wanted):
        alone = bool(one.trainee.config.lora.dropout) or not one.trainee.config.packing
        for piece in cut(one.batch, min(max_tokens, one.trainee.config.max_tokens)):
            if alone:
                yield [_Part(owner, piece)]
                continue
            if open_parts and used + piece.num_tokens > max_tokens:
                yield open_parts
                open_parts, used = [], 0
            open_parts.append(_Part(owner, piece))
            used += piece.num_tokens
    if open_parts:
        yield open_parts


def _one_pass(wanted: Sequence[Wanted], parts: Sequence[_Part], divisors: Sequence[float]) -> list[Tally]:
    trainees = [wanted[part.owner].trainee for part in parts]
    base, config = trainees[0].base, trainees[0].config
    sequences = [sequence for part in parts for sequence in part.cut.sequences]
    owners = [number for number, part in enumerate(parts) for _ in part.cut.sequences]
    rows = base.new_pass(sequences, packing=config.packing, adapters=owners)
    adapters = [trainee.adapter for trainee in trainees]
    total: Tensor = torch.zeros((), device=base.device)
    tallies = []
    with base.running(
        rows, adapters, dropout=config.lora.dropout, generator=trainees[0].generator(parts[0].cut.numbers[0])
    ):
        for part, (scored, labels) in zip(parts, _split(base.scores(rows), rows, parts), strict=True):
            own = wanted[part.owner].trainee.config
            loss, tally = loss_of(scored, labels, part.cut.items, own.objective, divisors[part.owner], own.beta)
            total = total + loss
            tallies.append(tally)
        total.backward()
    return tallies


def _split(scored: Scored, rows: Pass, parts: Sequence[_Part]) -> Iterator[tuple[Scored, Labels]]:
    """Each part's share of the scores, with its examples counted from 0."""
    begin, first = 0, 0
    for part in parts:
        sequences = part.cut.sequences
        span = slice(begin, begin + sum(sequence.num_labels for sequence in sequences))
        labels = rows.labels
        yield (
            Scored(scored.logprobs_M[span], scored.top1_M[span]),
            Labels(
                labels.labels_M[span],
                labels.weights_M[span],
                labels.examples_M[span] - first,
                labels.lengths[first : first + len(sequences)],
            ),
        )
        begin, first = span.stop, first + len(sequences)
