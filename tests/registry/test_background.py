from __future__ import annotations

import os
import sys
import threading

import pytest
from tunedock_registry import background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_pool_gives_way_and_its_caller_does_not() -> None:
    before = priority()
    with background.threads(1, "test") as pool:
        assert pool.submit(priority).result() == max(background.NICE, before)
    assert priority() == before


def test_who_gave_way_further_stays_there() -> None:
    def twice() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        background.give_way()
        return priority()

    with background.threads(1, "test") as pool:
        assert pool.submit(twice).result() == 15
