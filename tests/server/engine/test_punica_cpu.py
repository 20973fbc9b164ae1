"""Our wrapper through the interface that vLLM's layers use, and the self-check that runs at every start."""

from __future__ import annotations

import pytest
import torch
from tunedock_server.engine import selfcheck
from tunedock_server.engine.punica_cpu import TuneDockPunicaCPU
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
