"""Attention over packed rows: examples stand side by side in one row, and each one attends to itself alone.

transformers calls `packed_attention` through its registry of attention implementations, so every model that uses that
registry works unpatched. Queries, keys and values are gathered into small padded grids (`rows.Gather`), one batched
matmul each: no mask between examples exists that could leak. On CPU, torch's fused attention spends 11 ms in the backward
pass of 16 × 64 tokens × 9 heads where plain batched matmuls take 1 ms, so short examples use the latter.

Shapes: H query heads, K key heads, N tokens, B × L grid, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .rows import Gather

NAME = "tunedock_packed"
_FUSED_FROM = 512
"""Longest example, in tokens, for which scores are materialised on CPU."""


@dataclass
class PackedRows:
    """What the row of the running pass looks like; empty outside of packed passes. One a process: transformers' registry
    hands us nothing of our own."""

    gathers: list[Gather] = field(default_factory=list)


PACKED = PackedRows()


def register() -> None:
    """Makes `attn_implementation="tunedock_packed"` known to transformers."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _mask)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None if PACKED.gathers else sdpa_mask(*args, **kwargs)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query` [1, H, N, D], `key` and `value` [1, K, N, D] → [1, N, H, D]; plain SDPA outside of packed passes."""
    if not PACKED.gathers:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window, cap = kwargs.get("sliding_window"), kwargs.get("softcap")
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention sinks cannot be packed")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    outputs = [_grid_attention(q, k, v, gather, scale, window, cap) for gather in PACKED.gathers]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _grid_attention(
    q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, gather: Gather, scale: float, window: int | None, cap: float | None
) -> Tensor:
    """The output of the gather's examples, [n, H, D]."""
    q, k, v = (_to_grid(tensor, gather) for tensor in (q_NHD, k_NKD, v_NKD))
    narrow = window is not None and window < gather.length
    if cap is None and not narrow and (q.is_cuda or gather.length >= _FUSED_FROM):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    else:
        out = _by_matmul(q, k, v, _causal(gather.length, window, q), scale, cap)
    out = out.transpose(1, 2).reshape(gather.num_rows * gather.length, q.shape[1], -1)
    return out if gather.dense else _FromGrid.apply(out, gather)


def _to_grid(x_NHD: Tensor, gather: Gather) -> Tensor:
    """→ [B, H, L, D]"""
    part = x_NHD[gather.start : gather.end] if gather.dense else _ToGrid.apply(x_NHD, gather)
    return part.reshape(gather.num_rows, gather.length, *part.shape[1:]).transpose(1, 2)


class _ToGrid(torch.autograd.Function):
    """[N, H, D] → [B·L, H, D]. No gradient comes back from padding: its own outputs are dropped, and causal attention lets
    no token see it. So backward is a plain selection, where autograd's would be a scatter with sums."""

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, gather: Gather) -> Tensor:
        ctx.gather, ctx.num_tokens = gather, x_NHD.shape[0]
        return x_NHD.index_select(0, gather.index_BL)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        part = grad.index_select(0, ctx.gather.rows)
        if part.shape[0] == ctx.num_tokens:
            return part, None
        whole = part.new_zeros(ctx.num_tokens, *part.shape[1:])
        whole[ctx.gather.start : ctx.gather.end] = part
        return whole, None


class _FromGrid(torch.autograd.Function):
    """[B·L, H, D] → [n, H, D]: the real tokens. Backward fills the padding with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Gather) -> Tensor:
        ctx.gather, ctx.num_cells = gather, x.shape[0]
        return x.index_select(0, gather.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.new_zeros(ctx.num_cells, *grad.shape[1:])
        return whole.index_copy_(0, ctx.gather.rows, grad), None


def _causal(length: int, window: int | None, like: Tensor) -> Tensor:
    """[L, L] in the dtype of `like`: 0 where a token may look, -inf elsewhere."""
    allowed = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    if window is not None and window < length:
        allowed &= ~torch.ones_like(allowed).tril(-window)
    return torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill(~allowed, float("-inf"))


def _by_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float | None) -> Tensor:
    """Matmuls in the input's dtype, softmax in fp32 inside its kernel; only its rounded result is kept for backward. The
    query heads of one key head are stacked into one matmul."""
    B, H, L, D = q.shape
    K = k.shape[1]
    stacked = q.reshape(B * K, H // K * L, D)
    scores = torch.bmm(stacked, k.reshape(B * K, L, D).transpose(1, 2)).view(B * K, H // K, L, L) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    weights = torch.softmax(scores + mask, dim=-1).view(B * K, H // K * L, L)
    return torch.bmm(weights, v.reshape(B * K, L, D)).view(B, H, L, D)
