"""What backward computes again is not kept, and comes out the same."""

from __future__ import annotations

import pytest
import torch
from support.training import config, gradients, items, tiny_base, trainee
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from tunedock_trainer.mlp import patch_mlps
from tunedock_trainer.recompute import recipe_of, with_recipe


def mlp(activation: str = "silu") -> LlamaMLP:
    torch.manual_seed(3)
    made = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, hidden_act=activation, num_attention_heads=2))
    return made.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_mlp_has_the_output_and_the_gradient_of_transformers(dtype: torch.dtype) -> None:
    theirs, ours = mlp().to(dtype), mlp().to(dtype)
    assert patch_mlps(ours) == 1
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = theirs(inputs[0]), ours(inputs[1])
    assert torch.equal(*outputs)
    for output in outputs:
        torch.autograd.backward(output.sum())
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_an_mlp_of_another_kind_is_left_alone() -> None:
    assert patch_mlps(nn.ModuleList([mlp("gelu"), nn.Linear(3, 3)])) == 0


def test_a_layer_keeps_two_tensors_of_the_mlps_width() -> None:
    one, batch = trainee(config(), items(4)), items(4)
    width, layers = one.base.model.config.intermediate_size, one.base.model.config.num_hidden_layers
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1] == width and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        gradients(one, batch)
    assert len(kept) == 2 * layers


def test_a_tensor_without_a_recipe_is_kept_itself() -> None:
    x = torch.ones(2)
    recipe = recipe_of(x)
    assert recipe.function(*recipe.ingredients) is x


def test_nothing_is_held_where_no_backward_comes() -> None:
    x, source = torch.ones(2), torch.zeros(2)
    with torch.no_grad():
        with_recipe(x, torch.neg, source)
    assert recipe_of(x).ingredients == (x,)
    with_recipe(x, torch.neg, source)
    assert recipe_of(x).ingredients[0].data_ptr() == source.data_ptr()


def test_the_tiny_base_is_patched() -> None:
    assert all("forward" in vars(layer.mlp) for layer in tiny_base().model.base_model.layers)
