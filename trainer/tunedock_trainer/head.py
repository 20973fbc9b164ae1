"""Log-probabilities where a label is, and nowhere else.

Shapes: M labelled positions, D hidden width, V vocabulary. The hidden states are gathered before the output layer, so
logits exist for M positions instead of all tokens, and for a chunk of those at a time: what backward needs of them is one
[M, D] tensor, made while they are there. Whatever the loss does with a log-probability, ∂log p/∂h stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK_LOGITS = 4 * 2**20
"""Logits of one chunk; 16 MiB in fp32."""


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
    """∂logp/∂logits = onehot(label) − softmax(logits), times the output layer gives the kept ∂logp/∂h."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, labels_M: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        rows, wanted = head.rows_per_chunk, ctx.needs_input_grad[0]
        parts = [_chunk(h, y, head, wanted) for h, y in zip(hidden_MD.split(rows), labels_M.split(rows), strict=True)]
        logprobs, top1, slopes = (torch.cat(some) for some in zip(*parts, strict=True))
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(top1)
        return logprobs, top1

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _top1: Tensor) -> tuple[Tensor, None, None]:
        (slopes_MD,) = ctx.saved_tensors
        return (slopes_MD * grad_M[:, None]).to(slopes_MD.dtype), None, None


def _chunk(hidden: Tensor, labels: Tensor, head: Head, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """log p = logit − logsumexp, where logsumexp = max logit − log p(top): exact in fp32, and softmax is needed anyway.

    The third is ∂logp/∂h, empty unless `wanted`.
    """
    logits = head.logits(hidden)
    probs = torch.softmax(logits, dim=-1, dtype=torch.float32)
    top_p, top1 = probs.max(dim=-1)
    peak = logits.gather(1, top1[:, None])[:, 0].float()
    label = logits.gather(1, labels[:, None])[:, 0].float()
    logprobs = label - peak + top_p.log()
    return logprobs, top1, _slopes(probs, labels, logits, head) if wanted else hidden[:, :0]


def _slopes(probs: Tensor, labels: Tensor, logits: Tensor, head: Head) -> Tensor:
    """∂logp/∂h [M, D]; takes `probs` for its own."""
    delta = probs.neg_()
    delta[torch.arange(len(labels), device=delta.device), labels] += 1
    if head.cap is not None:
        delta *= 1 - (logits.float() / head.cap) ** 2
    if head.scale != 1.0:
        delta *= head.scale
    return delta.to(logits.dtype) @ head.weight_VD
