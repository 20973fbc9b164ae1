"""Tensors that backward computes again, because their ingredients are kept anyway and an elementwise kernel is cheap.

An adapter's gradient needs the input of its module. For `down_proj` that is the product inside the MLP, as wide as nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_tunedock_recipe"


@dataclass(frozen=True, slots=True)
class Recipe:
    """`function(*ingredients)` is the tensor."""

    function: Callable[..., Tensor]
    ingredients: tuple[Tensor, ...]


def with_recipe(made: Tensor, function: Callable[..., Tensor], *ingredients: Tensor) -> Tensor:
    """`made`, which whoever keeps it for backward may replace by its recipe. Only where there is a backward."""
    if torch.is_grad_enabled():
        setattr(made, _ATTRIBUTE, Recipe(function, tuple(one.detach() for one in ingredients)))
    return made


def recipe_of(x: Tensor) -> Recipe:
    """How to get `x` again: by its recipe, else by keeping it."""
    found: Any = getattr(x, _ATTRIBUTE, None)
    return found if isinstance(found, Recipe) else Recipe(_itself, (x,))


def _itself(x: Tensor) -> Tensor:
    return x
