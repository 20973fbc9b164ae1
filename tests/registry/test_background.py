from __future__ import annotations

import os
import platform
import subprocess
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


GIVES_WAY = """
import os, sys, threading
from tunedock_registry.background import give_way_as_process
give_way_as_process(12)
later = threading.Thread(target=lambda: print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), turn_ns(0)))
print(os.getpriority(os.PRIO_PROCESS, 0), turn_ns(0))
later.start()
"""
TURN = """
import ctypes, platform, struct
def turn_ns(thread):
    attributes = ctypes.create_string_buffer(56)
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    if ctypes.CDLL(None).syscall(number, thread, attributes, 56, 0):
        return -1
    return struct.unpack("=IIQiIQQQII", attributes.raw)[5]
"""


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split(".")[:2])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the number of the call is not known here")
def test_a_process_gives_way_with_the_threads_that_it_starts_and_takes_short_turns() -> None:
    done = subprocess.run([sys.executable, "-c", TURN + GIVES_WAY], capture_output=True, text=True, check=True)
    lines = [[int(number) for number in line.split()] for line in done.stdout.splitlines()]
    assert [nice for nice, _ in lines] == [12, 12]
    turns_ns = [turn_ns for _, turn_ns in lines]
    if kernel() < (6, 12) or -1 in turns_ns:
        pytest.skip("this kernel has one length of turns for all, or does not tell")
    assert turns_ns == [100_000, 100_000]
