"""Adapters side by side, so that rows of several jobs take one matmul each instead of one a job.

A stack's columns are ranks: module by module of the group, and within a module adapter by adapter.
    A [C, I],   B_i [O_i, C_i],   mask [n, C]: 1 where row and column belong to the same adapter
Where h = x Aᵀ and u = [g_i B_i] are masked, the outputs, ∂A and ∂B of every adapter are those of its rows alone: the other
terms are zeros. The zeros are computed, so a stack is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import Adapter, Views
from .rows import Segment

STACKED_RANKS = 64
"""Ranks of a stack's adapters together. On CPU a call of a small matmul costs as much as the zeros of some 64 ranks."""

Masks = dict[tuple[object, ...], Tensor]


@dataclass(frozen=True, slots=True)
class Owner:
    """Columns `begin:end` are the ranks of one adapter's module; where its gradients go: `a_grad` [R, I], `b_grad` [O, R]."""

    begin: int
    end: int
    a_grad: Tensor
    b_grad: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class Stack:
    """One group of modules for rows `start:end`. `members[i]` is the place of the i-th adapted module in the base's group;
    its columns are `spans[i]`, its B `b[i]`. No mask: the rows are one adapter's."""

    start: int
    end: int
    a: Tensor
    members: tuple[int, ...]
    b: tuple[Tensor, ...]
    spans: tuple[tuple[int, int], ...]
    owners: tuple[tuple[Owner, ...], ...]
    mask: Tensor | None


_Bundle = list[tuple[Segment, Views]]


def stacks_of(
    names: tuple[str, ...], adapters: Sequence[Adapter], segments: Sequence[Segment], masks: Masks
) -> list[Stack]:
    """The stacks of the group `names`. `masks` keeps those that groups of a pass have in common."""
    return [
        _alone(*bundle[0]) if len(bundle) == 1 else _together(bundle, masks)
        for bundle in _bundles(names, adapters, segments)
    ]


def _bundles(names: tuple[str, ...], adapters: Sequence[Adapter], segments: Sequence[Segment]) -> Iterator[_Bundle]:
    """Neighbouring rows whose adapters have no more than `STACKED_RANKS` ranks; rows without an adapter here part them."""
    bundle: _Bundle = []
    used = 0
    for segment in segments:
        views = adapters[segment.adapter].views.get(names)
        rank = max(end - begin for begin, end in views.spans) if views else 0
        if bundle and (views is None or used + rank > STACKED_RANKS):
            yield bundle
            bundle, used = [], 0
        if views is not None:
            bundle.append((segment, views))
            used += rank
    if bundle:
        yield bundle


def _alone(segment: Segment, views: Views) -> Stack:
    owners = tuple((_owner(views, place, begin),) for place, (begin, _) in enumerate(views.spans))
    return Stack(segment.start, segment.end, views.a, views.members, views.b, views.spans, owners, None)


def _owner(views: Views, place: int, column: int) -> Owner:
    begin, end = views.spans[place]
    return Owner(column, column + end - begin, views.a_grad[begin:end], views.b_grad[place], views.scaling[place])


def _together(bundle: _Bundle, masks: Masks) -> Stack:
    members = sorted({member for _, views in bundle for member in views.members})
    parts_a: list[Tensor] = []
    parts_b: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    owners: list[tuple[Owner, ...]] = []
    whose: list[int] = []
    for member in members:
        first, held, b = len(whose), [], []
        for number, (_, views) in enumerate(bundle):
            if member not in views.members:
                continue
            place = views.members.index(member)
            begin, end = views.spans[place]
            held.append(_owner(views, place, len(whose)))
            parts_a.append(views.a[begin:end])
            b.append(views.b[place])
            whose += [number] * (end - begin)
        parts_b.append(torch.cat(b, dim=1))
        spans.append((first, len(whose)))
        owners.append(tuple(held))
    start, end = bundle[0][0].start, bundle[-1][0].end
    mask = _mask([segment.end - segment.start for segment, _ in bundle], whose, parts_a[0], masks)
    return Stack(start, end, torch.cat(parts_a), tuple(members), tuple(parts_b), tuple(spans), tuple(owners), mask)


def _mask(num_rows: Sequence[int], whose: Sequence[int], like: Tensor, masks: Masks) -> Tensor:
    """[n, C] in the dtype of `like`: the first `num_rows[0]` rows belong to adapter 0, column c to `whose[c]`."""
    key = (*num_rows, None, *whose)
    if key not in masks:
        rows = torch.repeat_interleave(torch.tensor(num_rows)).to(like.device)
        masks[key] = (rows[:, None] == torch.tensor(whose, device=like.device)).to(like.dtype)
    return masks[key]
