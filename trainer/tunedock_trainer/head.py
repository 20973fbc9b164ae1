"""Log-probabilities where a label is, and nowhere else.

Shapes: M labelled positions, D hidden width, V vocabulary. The hidden states are gathered before the output layer, so
logits exist for M positions instead of all tokens, in chunks, and their gradient never becomes a graph of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK_LOGITS = 16 * 2**20
"""Logits of one chunk; 64 MiB in fp32."""


@dataclass(frozen=True)
class Head:
    """The frozen output layer: logits = cap · tanh(scale · (h Wᵀ + bias) / cap); cap None leaves the tanh out."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def rows_per_chunk(self) -> int:
        return max(1, _CHUNK_LOGITS // self.weight_VD.shape[0])

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """[M, V] in the dtype of the hidden states."""
        logits = torch.nn.functional.linear(hidden_MD, self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True)
class Scored:
    """`logprobs_M` in nats, fp32, with gradient; `top1_M` the most probable token."""

    logprobs_M: Tensor
    top1_M: Tensor


def score(hidden_MD: Tensor, labels_M: Tensor, head: Head) -> Scored:
    """Log-probability of each label and the most probable token at its position."""
    logprobs, top1 = _LabelLogprobs.apply(hidden_MD, labels_M, head)
    return Scored(logprobs, top1)


class _LabelLogprobs(torch.autograd.Function):
    """∂logp/∂logits = onehot(label) − softmax(logits). Backward computes the logits of a chunk again instead of keeping
    M × V numbers, unless there is only one chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, labels_M: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        rows = head.rows_per_chunk
        parts = [_chunk(h, y, head) for h, y in zip(hidden_MD.split(rows), labels_M.split(rows), strict=True)]
        kept = (parts[0][2], parts[0][3]) if len(parts) == 1 else ()
        ctx.save_for_backward(hidden_MD, labels_M, *kept)
        ctx.head = head
        top1 = torch.cat([part[1] for part in parts]) if parts else labels_M.clone()
        ctx.mark_non_differentiable(top1)
        return torch.cat([part[0] for part in parts]) if parts else hidden_MD.new_zeros(0, dtype=torch.float32), top1

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _top1: Tensor) -> tuple[Tensor, None, None]:
        hidden, labels, *kept = ctx.saved_tensors
        rows = ctx.head.rows_per_chunk
        grads = [
            _chunk_grad(h, y, g, ctx.head, kept)
            for h, y, g in zip(hidden.split(rows), labels.split(rows), grad_M.split(rows), strict=True)
        ]
        return torch.cat(grads) if grads else torch.zeros_like(hidden), None, None


def _chunk(hidden: Tensor, labels: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p = logit − logsumexp, where logsumexp = max logit − log p(top): exact in fp32, and softmax is needed anyway."""
    logits = head.logits(hidden)
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
    top_p, top1 = probs.max(dim=-1)
    peak = logits.gather(1, top1[:, None])[:, 0].float()
    label = logits.gather(1, labels[:, None])[:, 0].float()
    return label - peak + top_p.log(), top1, probs, logits


def _chunk_grad(hidden: Tensor, labels: Tensor, grad: Tensor, head: Head, kept: list[Tensor]) -> Tensor:
    probs, logits = kept if kept else _chunk(hidden, labels, head)[2:]
    delta = probs.mul_(-grad[:, None])
    delta[torch.arange(len(labels), device=delta.device), labels] += grad
    if head.cap is not None:
        delta *= 1 - (logits.float() / head.cap) ** 2
    if head.scale != 1.0:
        delta *= head.scale
    return delta.to(hidden.dtype) @ head.weight_VD
