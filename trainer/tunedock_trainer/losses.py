"""What is minimised. Both losses are sums over one pass, divided by what the whole batch holds, so that cutting a batch
into passes changes nothing.

Shapes: M labelled positions, S sequences of a pass, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .head import Scored
from .rows import Labels, Tokens
from .settings import Objective


@dataclass(frozen=True, slots=True)
class Item:
    """What one training example becomes. Supervised: its sequences (one, unless the template forbids it). Preference: the
    preferred and the other answer, with the reference's log-probability of each (sum over the answer)."""

    sequences: tuple[Tokens, ...]
    reference: tuple[float, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def num_labels(self) -> int:
        return sum(sequence.num_labels for sequence in self.sequences)


@dataclass
class Tally:
    """Sums over passes: `loss` already divided by the batch's normaliser; the rest are counts and plain sums."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0
    num_tokens: int = 0
    num_labels: int = 0
    margin: float = 0.0
    num_pairs: int = 0

    @property
    def accuracy(self) -> float:
        """Supervised: share of labels that are the most probable token. DPO: share of pairs with a positive margin."""
        return self.correct / max(self.num_pairs or self.weight, 1e-9)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def normaliser(items: Sequence[Item], objective: Objective) -> float:
    """Supervised: the sum of all loss weights. DPO: the number of pairs."""
    if objective == "dpo":
        return float(len(items))
    return max(sum(sequence.weight for item in items for sequence in item.sequences), 1e-9)


def loss_of(
    scored: Scored, labels: Labels, items: Sequence[Item], objective: Objective, divisor: float, beta: float
) -> tuple[Tensor, Tally]:
    """What `items` add to their batch's loss and tally."""
    if objective == "dpo":
        return _dpo(scored, labels, items, divisor, beta)
    return _supervised(scored, labels, divisor)


def _supervised(scored: Scored, labels: Labels, divisor: float) -> tuple[Tensor, Tally]:
    """−Σ w log p / Σ w"""
    loss = -(scored.logprobs_M * labels.weights_M).sum() / divisor
    hits = ((scored.top1_M == labels.labels_M) * labels.weights_M).sum()
    return loss, Tally(
        loss=float(loss.detach()),
        weight=float(labels.weights_M.sum()),
        correct=float(hits),
        num_tokens=labels.num_tokens,
        num_labels=len(labels.labels_M),
    )


def sequence_logprobs(scored: Scored, labels: Labels) -> Tensor:
    """[S]: Σ w log p of each sequence."""
    sums = scored.logprobs_M.new_zeros(len(labels.lengths))
    return sums.index_add(0, labels.examples_M, scored.logprobs_M * labels.weights_M)


def _dpo(scored: Scored, labels: Labels, items: Sequence[Item], divisor: float, beta: float) -> tuple[Tensor, Tally]:
    """−log σ(β ((log π(w) − log π_ref(w)) − (log π(l) − log π_ref(l)))), Rafailov et al. 2023, equation 7."""
    reference = torch.tensor([item.reference for item in items], device=scored.logprobs_M.device)
    ratios_P2 = sequence_logprobs(scored, labels).view(-1, 2) - reference
    margin_P = beta * (ratios_P2[:, 0] - ratios_P2[:, 1])
    loss = -F.logsigmoid(margin_P).sum() / divisor
    return loss, Tally(
        loss=float(loss.detach()),
        weight=float(labels.weights_M.sum()),
        correct=float((margin_P > 0).sum()),
        num_tokens=labels.num_tokens,
        num_labels=len(labels.labels_M),
        margin=float(margin_P.detach().sum()),
        num_pairs=len(items),
    )
