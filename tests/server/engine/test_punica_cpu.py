"""Our wrapper through the interface that vLLM's layers use, and the self-check that runs at every start."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.host_adapters import expected, host_adapter
from tunedock_server.engine import kernel, selfcheck
from tunedock_server.engine.layers import Layers
from tunedock_server.engine.punica_cpu import TuneDockPunicaCPU
from tunedock_server.engine.wrapped import Stacked, accepted, in_slots
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

IDS = [None, 21, 22]  # slot -> adapter id; slot 0 is empty


def _wrapper(tokens: tuple[int, ...], sampled: tuple[int, ...]) -> TuneDockPunicaCPU:
    wrapper = TuneDockPunicaCPU(64, 64, "cpu")
    wrapper.update_metadata(LoRAMapping(tokens, sampled, is_prefill=True), IDS, 4, 50)
    return wrapper


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_self_check_passes_for_our_wrapper(dtype: torch.dtype) -> None:
    assert selfcheck.worst_error(TuneDockPunicaCPU, dtype) <= selfcheck.TOLERANCE[dtype]


def test_the_self_check_passes_for_bfloat16_adapters_of_a_float32_engine() -> None:
    error = selfcheck.worst_error(TuneDockPunicaCPU, torch.float32, torch.bfloat16)
    assert error <= selfcheck.TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_self_check_passes_without_the_kernel(dtype: torch.dtype) -> None:
    assert selfcheck.worst_error(TuneDockPunicaCPU, dtype, use_kernel=False) <= selfcheck.TOLERANCE[dtype]


def test_the_self_check_catches_what_stock_vllm_does_to_base_rows() -> None:
    assert selfcheck.worst_error(PunicaWrapperCPU, torch.float32) > 0.1


def test_logits_of_base_rows_stay_and_adapter_rows_get_theirs() -> None:
    wrapper = _wrapper((21, 21, 21, 0, 22), (21, 0, 22))
    hidden, vocab, rank = 16, 50, 4
    a, b = torch.randn(3, 1, rank, hidden), torch.randn(3, 1, vocab + 6, rank)
    x, y = torch.randn(3, hidden), torch.randn(3, vocab)
    before = y.clone()
    wrapper.add_lora_logits(y, x, a, b, 1.0)
    assert torch.allclose(y[0], before[0] + b[1, 0, :vocab] @ (a[1, 0] @ x[0]), atol=1e-4)
    assert torch.equal(y[1], before[1])
    assert torch.allclose(y[2], before[2] + b[2, 0, :vocab] @ (a[2, 0] @ x[2]), atol=1e-4)


def test_embeddings_of_base_rows_stay_and_adapter_rows_get_theirs() -> None:
    wrapper = _wrapper((0, 21, 22, 0), (0,))
    rank, out = 4, 24
    b = torch.randn(3, 1, out, rank)
    gathered, y = torch.randn(4, rank), torch.randn(4, out)
    before = y.clone()
    wrapper.add_lora_embedding(y, gathered, b, add_inputs=True)
    for row, slot in enumerate((-1, 1, 2, -1)):
        expected = before[row] + (b[slot, 0] @ gathered[row] if slot >= 0 else 0)
        assert torch.allclose(y[row], expected, atol=1e-4)


def test_shrink_and_expand_agree_with_the_fused_call() -> None:
    wrapper = _wrapper((22, 0, 21, 21, 22), (22,))
    a, b = (torch.randn(3, 1, 4, 16),) * 2, (torch.randn(3, 1, 8, 4), torch.randn(3, 1, 12, 4))
    x, fused = torch.randn(5, 16), torch.randn(5, 20)
    stepwise, buffer = fused.clone(), torch.zeros(2, 5, 4)
    wrapper.add_lora_linear(fused, x, a, b, 1.0, (8, 12))
    wrapper.add_shrink(buffer, x, a, 1.0)
    wrapper.add_expand(stepwise, buffer, b, (8, 12))
    assert torch.allclose(fused, stepwise, atol=1e-4)


def test_a_batch_of_base_rows_touches_nothing() -> None:
    wrapper = _wrapper((0, 0), (0,))
    y = torch.randn(2, 8)
    before = y.clone()
    wrapper.add_lora_linear(y, torch.randn(2, 16), (torch.randn(3, 1, 4, 16),), (torch.randn(3, 1, 8, 4),), 1.0, (8,))
    assert torch.equal(y, before)
    assert wrapper.no_lora


INNER, WIDTHS, RANK = 40, (24, 16), 8
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = Layers.of([(12, (8,)), (INNER, WIDTHS)])
LAYER = LAYERS.layers[1]
TOKENS = (22, 0, 21, 21, 0, 22, 21)
IN_SLOT = [{None: -1, 21: 1, 22: 2}[token or None] for token in TOKENS]


def _stacked(inner: int, widths: Sequence[int], dtype: torch.dtype, fill: float | None = None) -> Stacked:
    """vLLM's slots of one layer: random, or all `fill`."""
    shapes = [(3, 1, RANK, inner)] * len(widths), [(3, 1, width, RANK) for width in widths]
    a, b = ([torch.randn(shape) if fill is None else torch.full(shape, fill) for shape in side] for side in shapes)
    return [tensor.to(dtype) for tensor in a], [tensor.to(dtype) for tensor in b]


def _of_all(dtype: torch.dtype, fill: float | None = None) -> list[Stacked]:
    return [_stacked(layer.inner, layer.widths, dtype, fill) for layer in LAYERS.layers]


def _step(wrapper: TuneDockPunicaCPU, tokens: tuple[int, ...] = TOKENS) -> None:
    wrapper.update_metadata(LoRAMapping(tokens, tokens, is_prefill=True), IDS, 4, 50)


def _x_and_y(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(TOKENS), INNER).to(dtype), torch.randn(len(TOKENS), sum(WIDTHS)).to(dtype)


def _add(wrapper: TuneDockPunicaCPU, y: torch.Tensor, x: torch.Tensor, slots: Stacked) -> None:
    wrapper.add_lora_linear(y, x, tuple(slots[0]), tuple(slots[1]), 1.0, WIDTHS)


def _close(y: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((y.double() - right).abs().max() <= selfcheck.TOLERANCE[y.dtype] * right.abs().max())


@pytest.mark.parametrize("use_kernel", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_whose_slots_hold_nothing_compute_from_host_memory(dtype: torch.dtype, use_kernel: bool) -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(dtype, float("nan"))
    wrapper.use_layers(LAYERS, dtype, slots, hollow=True, use_kernel=use_kernel)
    adapters = {
        1: host_adapter(LAYERS, (4, 3, 8), accepted(dtype)[-1], 1),
        2: host_adapter(LAYERS, (0, 0, 5), dtype, 2),
    }
    for slot, adapter in adapters.items():
        wrapper.put(slot, adapter)
    _step(wrapper)
    x, y = _x_and_y(dtype)
    before, right = y.clone(), expected(y, x, LAYER, IN_SLOT, adapters)
    _add(wrapper, y, x, slots[1])
    assert _close(y, right)
    assert torch.equal(y[[1, 4]], before[[1, 4]])


def test_rows_may_have_more_dimensions() -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(torch.float32, float("nan"))
    wrapper.use_layers(LAYERS, torch.float32, slots, hollow=True)
    adapters = {slot: host_adapter(LAYERS, (4, 3, 8), torch.float32, slot) for slot in (1, 2)}
    for slot, adapter in adapters.items():
        wrapper.put(slot, adapter)
    _step(wrapper)
    x, y = _x_and_y(torch.float32)
    right = expected(y, x, LAYER, IN_SLOT, adapters)
    _add(wrapper, y.view(1, len(TOKENS), -1), x.view(1, len(TOKENS), -1), slots[1])
    assert _close(y, right)


@pytest.mark.parametrize("use_kernel", [True, False], ids=["kernel", "torch"])
def test_what_is_put_into_a_slot_counts_from_the_next_step_on(use_kernel: bool) -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(torch.float32, float("nan"))
    wrapper.use_layers(LAYERS, torch.float32, slots, hollow=True, use_kernel=use_kernel)
    adapters = [host_adapter(LAYERS, (4, 3, 8), torch.float32, seed) for seed in (1, 2)]
    x, y = _x_and_y(torch.float32)
    for adapter in (*adapters, None):
        wrapper.put(1, adapter)
        _step(wrapper)
        now = y.clone()
        _add(wrapper, now, x, slots[1])
        assert _close(now, expected(y, x, LAYER, IN_SLOT, {1: adapter} if adapter else {}))
    assert torch.equal(now, y), "a slot that holds nothing changes nothing"


@pytest.mark.parametrize("use_kernel", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slots_that_vllm_fills_are_read_as_they_are_at_each_step(dtype: torch.dtype, use_kernel: bool) -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(dtype)
    wrapper.use_layers(LAYERS, dtype, slots, hollow=False, use_kernel=use_kernel)
    a, b = slots[1]
    for _ in range(2):
        _step(wrapper)
        x, y = _x_and_y(dtype)
        right = selfcheck.reference(y, x, tuple(a), tuple(b), IN_SLOT)
        _add(wrapper, y, x, slots[1])
        assert _close(y, right)
        for tensor in (*a, *b):
            tensor[1] *= 0.5


def test_a_layer_that_is_none_of_the_plain_ones_runs_on_its_slots() -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(torch.float32)
    wrapper.use_layers(LAYERS, torch.float32, slots, hollow=False)
    other = _stacked(INNER, WIDTHS, torch.float32)
    _step(wrapper)
    x, y = _x_and_y(torch.float32)
    right = selfcheck.reference(y, x, tuple(other[0]), tuple(other[1]), IN_SLOT)
    _add(wrapper, y, x, other)
    assert _close(y, right)


def test_a_model_without_plain_layers_has_no_adapters_in_its_slots() -> None:
    wrapper = TuneDockPunicaCPU(64, 64, "cpu")
    wrapper.use_layers(Layers.of([]), torch.float32, [], hollow=False)
    assert wrapper.adapters == {}


def test_a_step_keeps_its_scratch_for_the_next() -> None:
    wrapper, slots = TuneDockPunicaCPU(64, 64, "cpu"), _of_all(torch.float32, float("nan"))
    wrapper.use_layers(LAYERS, torch.float32, slots, hollow=True)
    for slot, rank in ((1, 4), (2, 8)):
        wrapper.put(slot, host_adapter(LAYERS, (rank, rank, rank), torch.float32, slot))
    _step(wrapper)
    large = wrapper._scratch
    assert large.numel() >= 5 * 8 * len(WIDTHS)
    _step(wrapper, (21, 0))
    assert wrapper._scratch is large


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slots_as_adapters_point_into_vllms_own_tensors(dtype: torch.dtype) -> None:
    slots = _of_all(dtype)
    found = in_slots(LAYERS, slots)
    pairs = [pair for a, b in slots for pair in zip(a, b, strict=True)]
    assert found.keys() == {0, 1, 2}
    for slot, adapter in found.items():
        assert (adapter.dtype, adapter.rank) == (dtype, RANK)
        assert adapter.table["a"].tolist() == [a[slot].data_ptr() for a, _ in pairs]
        assert adapter.table["b"].tolist() == [b[slot].data_ptr() for _, b in pairs]
        assert adapter.table["scale"].tolist() == [1.0] * len(pairs)


def test_an_engine_takes_its_own_dtype_first_and_others_that_there_is_a_kernel_for() -> None:
    compiled = kernel.library() is not None
    assert accepted(torch.float32) == ((torch.float32, torch.bfloat16) if compiled else (torch.float32,))
    assert accepted(torch.bfloat16) == (torch.bfloat16,)
    assert accepted(torch.float16) == (torch.float16,)
