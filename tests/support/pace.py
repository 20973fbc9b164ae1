"""Limits of CPU time that hold on any machine: multiples of work whose cost is known."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ENTRY = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
_WORK = json.dumps({f"t{number}": _ENTRY for number in range(70_000)})


@contextmanager
def costs_at_most(units: float) -> Iterator[None]:
    """Fails when the body takes this thread more than `units` times what reading 70,000 small objects takes.

    The unit is measured right after the body, in the same process: a slow processor and a heap full of the objects of
    other tests (which the garbage collector walks) slow down both. A unit is some 0.2 s where nothing does.
    """
    begin = time.thread_time()
    yield
    cost_s = time.thread_time() - begin
    begin = time.thread_time()
    json.loads(_WORK)
    unit_s = time.thread_time() - begin
    assert cost_s <= units * unit_s, f"{cost_s:.2f} s of CPU; {units} units are {units * unit_s:.2f} s"
