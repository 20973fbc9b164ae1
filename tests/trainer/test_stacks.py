"""Rows of several adapters are computed together and stay apart."""

from __future__ import annotations

import torch
from support.training import busy_adapter, tiny_base
from tunedock_trainer.adapter import Adapter
from tunedock_trainer.lora import adapted_modules
from tunedock_trainer.rows import Segment
from tunedock_trainer.settings import LoraConfig
from tunedock_trainer.stacks import Masks, stacks_of

SEGMENTS = (Segment(0, 0, 5), Segment(1, 5, 8), Segment(2, 8, 20))
SEGMENTS_OF_TWO = (Segment(0, 0, 5), Segment(1, 5, 20))


def group() -> tuple[str, ...]:
    """q, k and v of the first layer."""
    return tiny_base().groups[0]


def test_adapters_share_a_stack_up_to_64_ranks() -> None:
    adapters = [busy_adapter(seed, rank) for seed, rank in enumerate((32, 32, 8))]
    first, second = stacks_of(group(), adapters, SEGMENTS, {})
    assert (first.start, first.end, second.start, second.end) == (0, 8, 8, 20)
    assert (tuple(first.a.shape), second.mask) == ((3 * 64, tiny_base().facts.hidden_size), None)
    assert second.a.data_ptr() == adapters[2].views[group()].a.data_ptr()


def test_a_stack_computes_what_each_adapter_computes_alone() -> None:
    base = tiny_base()
    only_q = adapted_modules(LoraConfig(rank=2, alpha=2, target_modules=("q_proj",)), base.facts)
    adapters = [busy_adapter(1), Adapter(base.groups, only_q, dtype=base.dtype), busy_adapter(3, rank=8)]
    adapters[1].initialise(2)
    [stack] = stacks_of(group(), adapters, SEGMENTS, {})
    x = torch.randn(20, base.facts.hidden_size, generator=torch.Generator().manual_seed(0))
    assert stack.mask is not None
    h = (x @ stack.a.T) * stack.mask
    for segment in SEGMENTS:
        views = adapters[segment.adapter].views[group()]
        rows = slice(segment.start, segment.end)
        for member, b, (begin, end) in zip(views.members, views.b, views.spans, strict=True):
            place = stack.members.index(member)
            low, high = stack.spans[place]
            ours = h[rows, low:high] @ stack.b[place].T
            assert torch.allclose(ours, x[rows] @ views.a[begin:end].T @ b.T, atol=1e-5)


def test_groups_of_one_shape_share_the_mask_and_rows_without_an_adapter_part_stacks() -> None:
    base = tiny_base()
    only_q = adapted_modules(LoraConfig(rank=2, alpha=2, target_modules=("q_proj",)), base.facts)
    adapters = [busy_adapter(1), Adapter(base.groups, only_q, dtype=base.dtype), busy_adapter(3)]
    masks: Masks = {}
    both = [stacks_of(names, [adapters[0], adapters[2]], SEGMENTS_OF_TWO, masks)[0] for names in base.groups[:8]]
    assert len(masks) < len(both)
    down = next(names for names in base.groups if names[0].endswith("down_proj"))
    assert [stack.start for stack in stacks_of(down, adapters, SEGMENTS, {})] == [0, 8]
