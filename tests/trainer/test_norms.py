from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from tunedock_trainer.norms import patch_norms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_our_norm_equals_that_of_transformers(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    theirs, ours = LlamaRMSNorm(32), LlamaRMSNorm(32)
    for norm in (theirs, ours):
        norm.weight.data = torch.linspace(0.5, 2, 32)
        norm.to(dtype).requires_grad_(False)
    assert patch_norms(ours) == 1
    x = torch.randn(5, 7, 32, generator=generator, dtype=dtype)
    grad = torch.randn(5, 7, 32, generator=generator, dtype=dtype)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = theirs(inputs[0]), ours(inputs[1])
    assert torch.equal(*outputs)
    for output in outputs:
        torch.autograd.backward(output, grad)
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=tolerance, rtol=tolerance)


def test_a_norm_of_another_kind_is_left_alone() -> None:
    model = nn.ModuleList([GemmaRMSNorm(32), nn.LayerNorm(32)])
    assert patch_norms(model) == 0
