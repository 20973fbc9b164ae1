"""Packing: an adapter's matrices into the shape of the slots, with and without the C code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from tunedock_server.engine.packing import Packer
from tunedock_server.engine.slots import LayerSlots

INNER, WIDTHS, RANK = 24, (70, 37), 5


@dataclass(frozen=True)
class _Weights:
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float


def _weights(rank: int, width: int, dtype: torch.dtype, scaling: float) -> _Weights:
    generator = torch.Generator().manual_seed(rank * width)
    a, b = torch.randn(rank, INNER, generator=generator), torch.randn(width, rank, generator=generator)
    return _Weights(a.to(dtype), b.to(dtype), scaling)


@pytest.mark.parametrize("scaling", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float32], ids=str)
def test_every_matrix_is_where_a_step_reads_it(target: torch.dtype, dtype: torch.dtype, scaling: float) -> None:
    layer, other = LayerSlots.empty(2, RANK, INNER, WIDTHS, target), LayerSlots.empty(2, RANK, INNER, (8,), target)
    first, second = _weights(3, WIDTHS[0], dtype, scaling), _weights(RANK, WIDTHS[1], dtype, scaling)
    places = {"gate": (layer, 0), "up": (layer, 1), "down": (other, 0)}
    packed = Packer(places).pack({"gate": first, "up": second})
    assert packed.rank == RANK
    a, b = packed.a[0], packed.b[0]
    assert torch.equal(a[0, :3], first.lora_a.to(target))
    assert torch.equal(a[1], second.lora_a.to(target))
    assert torch.equal(b[:3, : WIDTHS[0]], (first.lora_b.t() * scaling).to(target))
    assert torch.equal(b[:, WIDTHS[0] :], (second.lora_b.t() * scaling).to(target))
    assert not a[0, 3:].any(), "ranks that this module does not have are zero"
    assert not b[3:, : WIDTHS[0]].any()
    assert not packed.a[1].any(), "a module that the adapter leaves alone is zero"
    assert not packed.b[1].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_value_that_is_no_number_shows(dtype: torch.dtype, value: float) -> None:
    layer = LayerSlots.empty(1, RANK, INNER, (64,), torch.bfloat16)
    weights = _weights(RANK, 64, dtype, 0.5)
    assert Packer({"o": (layer, 0)}).pack({"o": weights}).is_finite()
    weights.lora_b[40, 2] = value
    assert not Packer({"o": (layer, 0)}).pack({"o": weights}).is_finite()


def test_values_beyond_the_range_of_the_slots_show() -> None:
    layer = LayerSlots.empty(1, RANK, INNER, (64,), torch.bfloat16)
    weights = _weights(RANK, 64, torch.float32, 1.0)
    weights.lora_a[0, 0] = torch.finfo(torch.float32).max
    assert not Packer({"o": (layer, 0)}).pack({"o": weights}).is_finite()
