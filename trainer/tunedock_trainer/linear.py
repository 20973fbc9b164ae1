"""LoRA on frozen linear modules, for modules that read the same input computed together.

One group of modules with the input x [N, I]:
    h = x Aᵀ            [N, G·R]   one matmul for all modules of the group (q, k, v: three A's in one)
    y_i = x W_iᵀ + h_i B_iᵀ         B holds the scaling
Backward, with g_i = ∂L/∂y_i:
    u = [g_i B_i]       [N, G·R]
    ∂L/∂x = Σ g_i W_i + u A,   ∂L/∂A = uᵀ x,   ∂L/∂B_i = scaling · g_iᵀ h_i
The gradients are added to the adapter's flat fp32 buffers. Autograd sees one node a group instead of twelve, and no bf16
copies of fp32 weights are made in each pass. Rows of different adapters may share a pass: `Segment` says which is whose,
`stacks` how they are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .recompute import recipe_of
from .rows import Segment
from .stacks import Masks, Stack, stacks_of


@dataclass
class Active:
    """What the patched modules apply at present: `adapters[segment.adapter]` on rows `segment.start:segment.end`.

    Without segments the modules are the plain base. `dropout` (0 is off) acts on the input of A, with `generator`.
    """

    adapters: Sequence[Adapter] = ()
    segments: Sequence[Segment] = ()
    dropout: float = 0.0
    generator: torch.Generator | None = None
    _stacks: dict[tuple[str, ...], list[Stack]] = field(default_factory=dict)
    _masks: Masks = field(default_factory=dict)

    def stacks(self, names: tuple[str, ...]) -> list[Stack]:
        """Those of the group `names`, made once."""
        if names not in self._stacks:
            self._stacks[names] = stacks_of(names, self.adapters, self.segments, self._masks)
        return self._stacks[names]


@dataclass
class _Group:
    """Linear modules that read one tensor, and the outputs waiting for those that have not asked yet."""

    names: tuple[str, ...]
    linears: tuple[nn.Linear, ...]
    model: LoraModel
    anchor: Tensor
    source: Tensor | None = None
    waiting: dict[int, Tensor] = field(default_factory=dict)

    def output(self, number: int, x: Tensor) -> Tensor:
        """The output of module `number` for `x`; the first module to ask has all of them computed."""
        if self.source is not x or number not in self.waiting:
            outputs = _GroupedLora.apply(self.anchor, x, self, _dropped(x, self.model.active))
            self.source, self.waiting = x, dict(enumerate(outputs))
        result = self.waiting.pop(number)
        if not self.waiting:
            self.source = None
        return result


class LoraModel:
    """Patches the linear modules of a frozen model in place; `use` says which adapters they apply."""

    def __init__(self, model: nn.Module, groups: Sequence[tuple[str, ...]]) -> None:
        self.active = Active()
        device = next(model.parameters()).device
        anchor = torch.zeros((), device=device, requires_grad=True)
        for names in groups:
            linears = tuple(_linear(model, name) for name in names)
            group = _Group(tuple(names), linears, self, anchor)
            for number, linear in enumerate(linears):
                linear.forward = _forward(group, number)  # type: ignore[method-assign,assignment]

    @contextmanager
    def use(self, active: Active) -> Iterator[None]:
        """Within this context, forward and backward, `active` applies; afterwards the plain base."""
        self.active = active
        try:
            yield
        finally:
            self.active = Active()


def _forward(group: _Group, number: int) -> Callable[[Tensor], Tensor]:
    return lambda x: group.output(number, x)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear module")
    return module


def _dropped(x: Tensor, active: Active) -> Tensor | None:
    """The dropout factors of this call, or None when dropout is off."""
    if not active.dropout or not active.segments or not torch.is_grad_enabled():
        return None
    keep = torch.rand(x.shape, generator=active.generator, device=x.device) >= active.dropout
    return keep.to(x.dtype) / (1 - active.dropout)


class _GroupedLora(torch.autograd.Function):
    """See the module's docstring. `anchor` only makes autograd call backward when x itself needs no gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, group: _Group, factors: Tensor | None) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        outputs = [nn.functional.linear(flat, linear.weight, linear.bias) for linear in group.linears]
        dropped = flat if factors is None else flat * factors.reshape(flat.shape)
        stacks, parts = group.model.active.stacks(group.names), []
        for stack in stacks:
            h = dropped[stack.start : stack.end] @ stack.a.T
            if stack.mask is not None:
                h *= stack.mask
            for member, b, (begin, end) in zip(stack.members, stack.b, stack.spans, strict=True):
                outputs[member][stack.start : stack.end].addmm_(h[:, begin:end], b.T)
            parts.append(h)
        recipe = recipe_of(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(factors, *recipe.ingredients, *parts)
        ctx.group, ctx.stacks, ctx.shape = group, stacks, x.shape
        ctx.again, ctx.num_ingredients = recipe.function, len(recipe.ingredients)
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        factors, *kept = ctx.saved_tensors
        parts = kept[ctx.num_ingredients :]
        flat = ctx.again(*kept[: ctx.num_ingredients]).reshape(-1, ctx.shape[-1])
        dropped = flat if factors is None else flat * factors.reshape(flat.shape)
        rows = [None if grad is None else grad.reshape(flat.shape[0], -1) for grad in grads]
        x_grad = _base_grad(ctx.group, rows) if ctx.needs_input_grad[1] else None
        for stack, h in zip(ctx.stacks, parts, strict=True):
            span = slice(stack.start, stack.end)
            u = _lora_grads(stack, h, dropped[span], [None if row is None else row[span] for row in rows])
            if x_grad is not None and factors is None:
                x_grad[span].addmm_(u, stack.a)
            elif x_grad is not None:
                x_grad[span] += (u @ stack.a) * factors.reshape(flat.shape)[span]
        return None, None if x_grad is None else x_grad.view(ctx.shape), None, None


def _base_grad(group: _Group, rows: Sequence[Tensor | None]) -> Tensor | None:
    """Σ g_i W_i over the modules that have a gradient."""
    total: Tensor | None = None
    for linear, grad in zip(group.linears, rows, strict=True):
        if grad is not None:
            total = grad @ linear.weight if total is None else total.addmm_(grad, linear.weight)
    return total


def _lora_grads(stack: Stack, h: Tensor, x: Tensor, rows: Sequence[Tensor | None]) -> Tensor:
    """Adds ∂A and ∂B to the buffers of the stack's adapters; returns u [n, C]."""
    u = torch.zeros_like(h)
    for member, b, (begin, end), owners in zip(stack.members, stack.b, stack.spans, stack.owners, strict=True):
        grad = rows[member]
        if grad is not None:
            u[:, begin:end].copy_(grad @ b)
            b_grad = grad.T @ h[:, begin:end]
            for owner in owners:
                owner.b_grad.add_(b_grad[:, owner.begin - begin : owner.end - begin], alpha=owner.scaling)
    if stack.mask is not None:
        u *= stack.mask
    a_grad = u.T @ x
    for owner in chain.from_iterable(stack.owners):
        owner.a_grad.add_(a_grad[owner.begin : owner.end])
    return u
