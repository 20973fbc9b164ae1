"""Which requests transformers + PEFT answers together."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.lora_peft import NUM_QUEUED, batches
from benchmarks.lora_traffic import NUM_STREAMS


@pytest.mark.parametrize(("way", "num_requests"), [("grouped", NUM_STREAMS), ("queued", NUM_QUEUED), ("loaded", 3)])
def test_every_request_is_answered_once_and_neighbours_differ_in_adapter(way: str, num_requests: int) -> None:
    found = list(batches(way, 3))
    assert sorted(row for _, rows in found for row in rows) == list(range(num_requests))
    assert all(before != after for (before, _), (after, _) in pairwise(found))


def test_grouped_makes_one_batch_of_each_adapter() -> None:
    assert [index for index, _ in batches("grouped", 3)] == [0, 1, 2]
