"""The multi-LoRA arithmetic against float64, row by row."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from support.host_adapters import expected, host_adapter
from tunedock_server.engine import kernel, lora_math
from tunedock_server.engine.layers import Layers, WrappedLayer
from tunedock_server.engine.lora_math import KernelGroups
from tunedock_server.engine.matrices import HostAdapter

SLOTS, RANK, INNER = 4, 8, 96
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float32, weights bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
DTYPE_IDS = ["float32", "bfloat16"]

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


def _expected(batch: Batch, slots: list[int], scale: float = 1.0) -> torch.Tensor:
    x, y, a, b = batch
    out = y.double().clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                bi[slot, 0].double() @ (ai[slot, 0].double() @ x[row].double()) for ai, bi in zip(a, b, strict=True)
            ]
            out[row] += scale * torch.cat(parts)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=DTYPE_IDS)
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
@pytest.mark.parametrize("slots", ROWS.values(), ids=ROWS.keys())
def test_every_row_gets_its_own_slot_and_no_other(
    slots: list[int], outputs: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch = x, y, a, b = _batch(slots, outputs, dtype)
    right = _expected(batch, slots, 0.5)
    before = y.clone()
    lora_math.add_lora(y, x, a, b, outputs, lora_math.group_rows(slots), 0.5)
    assert (y.double() - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(y[base], before[base])


def test_garbage_in_slots_that_no_row_uses_changes_nothing() -> None:
    slots, outputs = [1, -1, 1, 1], (64,)
    batch = x, y, a, b = _batch(slots, outputs, torch.float32)
    right = _expected(batch, slots)
    for slot in (0, 2, 3):
        a[0][slot], b[0][slot] = float("nan"), float("inf")
    lora_math.add_lora(y, x, a, b, outputs, lora_math.group_rows(slots))
    assert torch.allclose(y.double(), right, atol=1e-5)


def test_expand_adds_at_the_offset_only() -> None:
    slots = [0, -1, 3, 3]
    _, y, _, b = _batch(slots, (32,), torch.float32)
    h = torch.randn(4, RANK)
    before = y.clone()
    lora_math.expand(y, h, b[0][:, :, :16], 8, lora_math.group_rows(slots))
    for row, slot in enumerate(slots):
        right = before[row].clone()
        if slot >= 0:
            right[8:24] += b[0][slot, 0, :16] @ h[row]
        assert torch.allclose(y[row], right, atol=1e-5)


def test_rows_that_lie_together_are_a_slice() -> None:
    groups = lora_math.group_rows([-1, 2, 2, 0, -1, 0])
    assert [group.slot for group in groups] == [0, 2]
    assert groups[1].rows == slice(1, 3)
    assert isinstance(groups[0].rows, torch.Tensor)
    assert groups[0].rows.tolist() == [3, 5]


KERNEL_ROWS = {
    **ROWS,
    "nine of one slot": [0] * 9,
    "more than one block": [3] * 37 + [-1] + [1] * 13,
    "what is left of blocks": [0] * 8 + [1] * 10 + [2] * 11 + [3] * 12,
    "more than one tile": [3] * (2 * lora_math.TILE_ROWS + 5) + [-1, 0] + [1] * (lora_math.TILE_ROWS + 1),
}
SHAPES = {
    **{name: (INNER, widths) for name, widths in OUTPUTS.items()},
    "no multiple of a vector": (51, (37, 5)),
    "less than a vector": (7, (3,)),
    "more than one piece": (130, (200, 65)),
}


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("slots", KERNEL_ROWS.values(), ids=KERNEL_ROWS.keys())
def test_every_row_gets_its_own_adapter_and_no_other(
    slots: list[int], shape: tuple[int, tuple[int, ...]], dtypes: tuple[torch.dtype, torch.dtype], path: str
) -> None:
    """Ranks differ from adapter to adapter and within one; slot 2 leaves the first slice alone, slot 1 the others."""
    layers, layer = _second_of_three(shape)
    ranks = {0: (3, 3, 3), 1: (8, 0, 0), 2: (0, 16, 5), 3: (1, 7, 24)}
    adapters = {
        slot: host_adapter(layers, (2, *there[: len(layer.widths)], 2), dtypes[1], slot)
        for slot, there in ranks.items()
    }
    _check(layer, slots, adapters, dtypes[0], path, scale=0.5)


RANKS = (1, 3, 4, 7, 8, 9, 16, 24, 33, 64)


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("rank", RANKS)
def test_each_rank_is_complete_for_each_count_of_rows(
    rank: int, dtypes: tuple[torch.dtype, torch.dtype], path: str
) -> None:
    layers = Layers.of([(72, (96, 35))])
    adapters = {0: host_adapter(layers, (rank, rank), dtypes[1], rank)}
    for count in (*range(1, 10), 100):
        _check(layers.layers[0], [-1, *[0] * count, -1], adapters, dtypes[0], path)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("rank", RANKS)
def test_an_adapters_rank_does_not_depend_on_who_is_in_the_batch(
    rank: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    layers = Layers.of([(64, (96, 32))])
    ranks = {0: (40, 16), 1: (rank, rank), 2: (0, rank), 3: (rank, 0)}
    adapters = {slot: host_adapter(layers, there, dtypes[1], slot) for slot, there in ranks.items()}
    _check(layers.layers[0], [1, 0, 1, 2, -1, 3, 3, 1, 2, 1], adapters, dtypes[0], "kernel")


@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_adapters_of_two_dtypes_share_a_batch(path: str) -> None:
    layers = Layers.of([(64, (48, 16))])
    adapters = {
        0: host_adapter(layers, (4, 4), torch.float32, 0),
        1: host_adapter(layers, (9, 3), torch.bfloat16, 1),
        2: host_adapter(layers, (16, 0), torch.float32, 2),
    }
    slots = [1, 0, -1, 2, 2, 1, 0, 1]
    _check(layers.layers[0], slots, adapters, torch.float32, path)
    batches = KernelGroups.of(lora_math.group_rows(slots), adapters)
    assert {(batch.dtype, batch.rows, batch.max_rank) for batch in batches} == {
        (torch.float32, 4, 16),
        (torch.bfloat16, 3, 9),
    }


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
def test_columns_of_a_module_that_is_left_alone_stay_bit_for_bit(
    dtypes: tuple[torch.dtype, torch.dtype], path: str
) -> None:
    layers = Layers.of([(INNER, (48, 16, 16))])
    adapters = {0: host_adapter(layers, (0, 8, 0), dtypes[1], 0)}
    x, y = _rows(layers.layers[0], 5, dtypes[0])
    before = y.clone()
    _add(y, x, layers.layers[0], [0] * 5, adapters, path)
    assert torch.equal(y[:, :48], before[:, :48])
    assert torch.equal(y[:, 64:], before[:, 64:])
    assert not torch.equal(y[:, 48:64], before[:, 48:64])


@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_an_adapter_of_other_layers_only_changes_nothing(path: str) -> None:
    layers, layer = _second_of_three((INNER, (48, 16)))
    adapters = {0: host_adapter(layers, (4, 0, 0, 4), torch.float32, 0)}
    x, y = _rows(layer, 3, torch.float32)
    before = y.clone()
    _add(y, x, layer, [0, 0, -1], adapters, path)
    assert torch.equal(y, before)


@pytest.mark.parametrize("path", ["kernel", "torch"])
def test_rows_of_a_slot_without_an_adapter_are_those_of_the_base(path: str) -> None:
    layers = Layers.of([(INNER, (48, 16))])
    adapters = {1: host_adapter(layers, (4, 4), torch.float32, 1)}
    _check(layers.layers[0], [0, 1, 0, -1, 1], adapters, torch.float32, path)
    assert KernelGroups.of(lora_math.group_rows([0, 0, -1]), adapters) == []


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
def test_rows_may_lie_apart_in_memory(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    layers = Layers.of([(INNER, (48, 16))])
    layer, slots = layers.layers[0], [0, 0, -1, 0, 0, 0]
    adapters = {0: host_adapter(layers, (8, 5), dtypes[1], 0)}
    x, y = (torch.full((6, width + 12), float("nan"), dtype=dtypes[0]) for width in (INNER, 64))
    x[:, 5 : 5 + INNER], y[:, 3 : 3 + 64] = _rows(layer, 6, dtypes[0])
    x_there, y_there = x[:, 5 : 5 + INNER], y[:, 3 : 3 + 64]
    right = expected(y_there, x_there, layer, slots, adapters)
    _add(y_there, x_there, layer, slots, adapters, "kernel")
    assert (y_there.double() - right).abs().max() <= TOLERANCE[dtypes[0]] * right.abs().max()
    assert y.isnan().sum() == 6 * 12


@pytest.mark.parametrize("edge", ["begin", "end"])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
def test_the_kernel_touches_no_byte_beside_a_matrix(dtypes: tuple[torch.dtype, torch.dtype], edge: str) -> None:
    """Files end where they end: a read beyond would end the process, as it would here."""
    for rank in RANKS:
        layers = Layers.of([(51, (83,)), (64, (64,))])
        ordinary = host_adapter(layers, (rank, rank), dtypes[1], rank)
        guarded, pages = _between_guards(ordinary, edge)
        for layer in layers.layers:
            for count in (1, 2, 5):
                x, y = _rows(layer, count, dtypes[0])
                right = expected(y, x, layer, [0] * count, {0: ordinary})
                _add(y, x, layer, [0] * count, {0: guarded}, "kernel")
                assert (y.double() - right).abs().max() <= TOLERANCE[dtypes[0]] * right.abs().max()
        for page in pages:
            page.close()


def _between_guards(adapter: HostAdapter, edge: str) -> tuple[HostAdapter, list[mmap.mmap]]:
    """The same with each matrix at one edge of pages of its own, and pages around them that nobody may touch."""
    table, pages = adapter.table.copy(), []
    for number, pair in enumerate(adapter.pairs):
        assert pair is not None
        for side, matrix in zip(("a", "b"), pair[:2], strict=True):
            room = -(-matrix.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            start = mmap.PAGESIZE + (room - matrix.nbytes if edge == "end" else 0)
            memory[start : start + matrix.nbytes] = matrix.view(torch.uint8).numpy().tobytes()
            for guard in (base, base + mmap.PAGESIZE + room):
                assert _mprotect(guard, mmap.PAGESIZE, 0) == 0
            table[side][number] = base + start
            pages.append(memory)
    return HostAdapter(adapter.layers, table, adapter.memory), pages


_mprotect = ctypes.CDLL(None).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _second_of_three(shape: tuple[int, tuple[int, ...]]) -> tuple[Layers, WrappedLayer]:
    """So that neither its modules nor its rows of the table are the first."""
    layers = Layers.of([(8, (4,)), shape, (4, (8,))])
    return layers, layers.layers[1]


def _rows(layer: WrappedLayer, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y."""
    generator = torch.Generator().manual_seed(count)
    x, y = (
        torch.randn(count, layer.inner, generator=generator),
        torch.randn(count, layer.offsets[-1], generator=generator),
    )
    return x.to(dtype), y.to(dtype)


def _check(
    layer: WrappedLayer,
    slots: Sequence[int],
    adapters: Mapping[int, HostAdapter],
    dtype: torch.dtype,
    path: str,
    scale: float = 1.0,
) -> None:
    """Every row is right, and base rows are neither read nor written."""
    x, y = _rows(layer, len(slots), dtype)
    base = [row for row, slot in enumerate(slots) if slot not in adapters]
    x[base] = float("nan")
    before, right = y.clone(), expected(y, x, layer, slots, adapters, scale)
    _add(y, x, layer, slots, adapters, path, scale)
    assert (y.double() - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()
    assert torch.equal(y[base], before[base])


def _add(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: WrappedLayer,
    slots: Sequence[int],
    adapters: Mapping[int, HostAdapter],
    path: str,
    scale: float = 1.0,
) -> None:
    groups = lora_math.group_rows(np.asarray(slots))
    if path == "torch":
        lora_math.add_adapters(y, x, layer, groups, adapters, scale)
    else:
        _run_kernel(y, x, layer, KernelGroups.of(groups, adapters), scale)


def _run_kernel(
    y: torch.Tensor, x: torch.Tensor, layer: WrappedLayer, batches: list[KernelGroups], scale: float
) -> None:
    if kernel.library() is None:
        pytest.skip("no C compiler on this machine")
    for batch in batches:
        run = kernel.function(_name(x.dtype), _name(batch.dtype))
        assert run is not None
        # NaN in each float that the kernel does not write itself.
        scratch = torch.full((batch.rows * len(layer.widths) * batch.max_rank,), float("nan"))
        addresses = ctypes.addressof(layer.native), ctypes.addressof(batch.native)
        run(*addresses, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), scale, scratch.data_ptr())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
