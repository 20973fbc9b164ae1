"""The multi-LoRA arithmetic against float64, row by row."""

from __future__ import annotations

import pytest
import torch
from tunedock_server.engine import lora_math

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
