"""The multi-LoRA arithmetic against float64, row by row."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import pytest
import torch
from tunedock_server.engine import kernel, lora_math
from tunedock_server.engine.packing import Packer
from tunedock_server.engine.slots import LayerSlots

SLOTS, RANK, INNER = 4, 8, 96
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

ROWS = {
    "all base": [-1] * 7,
    "one adapter": [2] * 9,
    "one adapter, base between": [-1, 1, -1, 1, 1, -1],
    "prefill of several": [0] * 20 + [-1] * 5 + [3] * 30 + [1] * 4,
    "decode interleaved, all slots": [3, -1, 0, 1, 2, -1, 3, 2, 1, 0, -1, 0],
    "prefill and decode mixed": [0] * 17 + [1, -1, 2, 0, 3, -1] + [2] * 6,
    "single row": [3],
}
OUTPUTS = {"one slice": (64,), "q, k, v": (48, 16, 16), "gate, up": (80, 80)}


Batch = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]


def _batch(slots: list[int], outputs: tuple[int, ...], dtype: torch.dtype) -> Batch:
    g = torch.Generator().manual_seed(len(slots))
    x = torch.randn(len(slots), INNER, generator=g).to(dtype)
    y = torch.randn(len(slots), sum(outputs), generator=g).to(dtype)
    a = [(torch.randn(SLOTS, 1, RANK, INNER, generator=g) / INNER**0.5).to(dtype) for _ in outputs]
    b = [(torch.randn(SLOTS, 1, out, RANK, generator=g) / RANK**0.5).to(dtype) for out in outputs]
    return x, y, a, b


def _expected(batch: Batch, slots: list[int], ranks: dict[int, int], scale: float = 1.0) -> torch.Tensor:
    x, y, a, b = batch
    out = y.double().clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            r = ranks.get(slot, RANK)
            parts = [
                bi[slot, 0, :, :r].double() @ (ai[slot, 0, :r].double() @ x[row].double())
                for ai, bi in zip(a, b, strict=True)
            ]
            out[row] += scale * torch.cat(parts)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS.keys())
def test_every_row_gets_its_own_adapter_and_no_other(
    slots: list[int], outputs: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch = x, y, a, b = _batch(slots, outputs, dtype)
    expected = _expected(batch, slots, {}, 0.5)
    before = y.clone()
    lora_math.add_lora(y, x, a, b, outputs, lora_math.group_rows(slots), {}, 0.5)
    assert (y.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base], before[base])


def test_ranks_beyond_the_adapters_own_are_not_read() -> None:
    slots, outputs = [0, 1, 0, 2, -1], (48, 16, 16)
    batch = x, y, a, b = _batch(slots, outputs, torch.float32)
    ranks = {0: 3, 1: 8, 2: 1}
    for tensor in a:
        tensor[0, 0, 3:] = float("nan")
    for tensor in b:
        tensor[2, 0, :, 1:] = float("nan")
    expected = _expected(batch, slots, ranks)
    lora_math.add_lora(y, x, a, b, outputs, lora_math.group_rows(slots), ranks)
    assert torch.allclose(y.double(), expected, atol=1e-5)


def test_garbage_in_slots_that_no_row_uses_changes_nothing() -> None:
    slots, outputs = [1, -1, 1, 1], (64,)
    batch = x, y, a, b = _batch(slots, outputs, torch.float32)
    expected = _expected(batch, slots, {})
    for slot in (0, 2, 3):
        a[0][slot], b[0][slot] = float("nan"), float("inf")
    lora_math.add_lora(y, x, a, b, outputs, lora_math.group_rows(slots), {})
    assert torch.allclose(y.double(), expected, atol=1e-5)


def test_expand_adds_at_the_offset_only() -> None:
    slots = [0, -1, 3, 3]
    _, y, _, b = _batch(slots, (32,), torch.float32)
    h = torch.randn(4, RANK)
    before = y.clone()
    lora_math.expand(y, h, b[0][:, :, :16], 8, lora_math.group_rows(slots), {})
    for row, slot in enumerate(slots):
        expected = before[row].clone()
        if slot >= 0:
            expected[8:24] += b[0][slot, 0, :16] @ h[row]
        assert torch.allclose(y[row], expected, atol=1e-5)


def test_rows_that_lie_together_are_a_slice() -> None:
    groups = lora_math.group_rows([-1, 2, 2, 0, -1, 0])
    assert [group.slot for group in groups] == [0, 2]
    assert groups[1].rows == slice(1, 3)
    assert isinstance(groups[0].rows, torch.Tensor)
    assert groups[0].rows.tolist() == [3, 5]


KERNEL_ROWS = {**ROWS, "nine of one slot": [0] * 9, "more than one block": [3] * 37 + [-1] + [1] * 13}


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize("slots", KERNEL_ROWS.values(), ids=KERNEL_ROWS.keys())
def test_layers_with_their_slices_together_give_the_same(
    slots: list[int], outputs: tuple[int, ...], dtype: torch.dtype, path: str
) -> None:
    batch = x, y, a, b = _batch(slots, outputs, dtype)
    layer = _layer(a, b, outputs)
    ranks = {0: 3, 1: 8, 3: 1}
    expected = _expected(batch, slots, ranks, 0.5)
    before = y.clone()
    groups = lora_math.group_rows(slots)
    if path == "torch":
        lora_math.add_lora_packed(y, x, layer, groups, ranks, 0.5)
    elif groups:
        _run_kernel(y, x, layer, groups, ranks, 0.5)
    assert (y.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_widths_that_are_no_multiple_of_a_vector_are_complete(dtype: torch.dtype) -> None:
    slots, outputs, inner = [0, 1, -1, 1, 0], (37, 5), 51
    layer, x, y = _random_layer(slots, outputs, inner, 7, dtype)
    expected = _expected((x, y, list(layer.a_views()), list(layer.b_views())), slots, {0: 5})
    _run_kernel(y, x, layer, lora_math.group_rows(slots), {0: 5}, 1.0)
    assert (y.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [1, 3, 4, 8, 9, 16])
def test_the_kernel_reads_no_rank_but_the_adapters_own(rank: int, dtype: torch.dtype) -> None:
    ranks = {0: 16, 1: rank}
    slots, outputs = [1, 0, 1, 1, -1, 1, 1, 1], (96, 32)
    layer, x, y = _random_layer(slots, outputs, 64, 16, dtype)
    layer.a[1, :, rank:] = float("nan")
    layer.b[1, rank:] = float("nan")
    expected = _expected((x, y, list(layer.a_views()), list(layer.b_views())), slots, ranks)
    _run_kernel(y, x, layer, lora_math.group_rows(slots), ranks, 1.0)
    assert (y.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def _random_layer(
    slots: list[int], outputs: tuple[int, ...], inner: int, max_rank: int, dtype: torch.dtype
) -> tuple[LayerSlots, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    layer = LayerSlots.empty(2, max_rank, inner, outputs, dtype)
    layer.a.copy_(torch.randn(layer.a.shape, generator=g))
    layer.b.copy_(torch.randn(layer.b.shape, generator=g))
    x, y = torch.randn(len(slots), inner, generator=g), torch.randn(len(slots), sum(outputs), generator=g)
    return layer, x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_adapter_lands_in_its_slot_and_leaves_the_others_alone(dtype: torch.dtype) -> None:
    layer = LayerSlots.empty(3, 8, 16, (4, 6), dtype)
    layer.a.fill_(7.0)
    layer.b.fill_(7.0)
    whole = _Weights(torch.randn(3, 16).to(dtype), torch.randn(6, 3).to(dtype), 2.0)
    packed = Packer({"gate": (layer, 0), "up": (layer, 1)}).pack({"up": whole})
    packed.copy_into(1)
    assert packed.rank == 3
    assert torch.equal(layer.a_views()[1][1, 0, :3], whole.lora_a)
    assert torch.equal(layer.b_views()[1][1, 0, :, :3], whole.lora_b * 2.0)
    assert not layer.a_views()[0][1, 0, :3].any()
    assert layer.a[[0, 2]].eq(7.0).all()
    assert layer.b[[0, 2]].eq(7.0).all()


@dataclass(frozen=True)
class _Weights:
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float


def _layer(a: list[torch.Tensor], b: list[torch.Tensor], outputs: tuple[int, ...]) -> LayerSlots:
    layer = LayerSlots.empty(SLOTS, RANK, INNER, outputs, a[0].dtype)
    for index in range(len(outputs)):
        layer.a_views()[index].copy_(a[index])
        layer.b_views()[index].copy_(b[index])
    return layer


def _run_kernel(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: LayerSlots,
    groups: tuple[lora_math.Group, ...],
    ranks: dict[int, int],
    scale: float,
) -> None:
    library = kernel.library()
    if library is None:
        pytest.skip("no C compiler on this machine")
    native = lora_math.KernelGroups.of(groups, ranks, layer.max_rank)
    run = library.tunedock_lora_f32 if x.dtype == torch.float32 else library.tunedock_lora_bf16
    scratch = torch.empty(native.rows * len(layer.widths) * layer.max_rank)
    addresses = ctypes.addressof(layer.native), ctypes.addressof(native.native)
    run(*addresses, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), scale, scratch.data_ptr())
