"""Work that can wait a little: beside streams of tokens it takes what these leave of the processors."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

NICE = 10
"""A tenth of the share of an ordinary thread: enough not to starve, little enough that a step of the engine goes first."""
TURN_S = 0.0001
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # Python has no sched_setattr


def give_way(nice: int = NICE) -> None:
    """Lowers the priority of the calling thread and of what it starts. Only Linux has priorities of threads (sched(7))."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = max(nice, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        set_turns(thread, nice, TURN_S)


def give_way_as_process(nice: int = NICE) -> None:
    """The same for a process that has not started threads yet.

    It has to be of its server's session: many kernels share processors between sessions before they look at nice values
    (sched(7), "The autogroup feature").
    """
    if sys.platform == "linux":
        give_way(nice)
    else:
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))


def set_turns(thread: int, nice: int, turn_s: float) -> None:
    """How long an ordinary thread (by its kernel id) runs when it is its turn; 0: as long as the kernel thinks best. One that
    somebody gave another policy (`chrt`) keeps it.

    A nice thread runs rarely, but then for a whole turn of 3 ms, and a compute thread that wakes up meanwhile waits for its
    end. It is `sched_runtime` since Linux 6.12; older kernels ignore it, and where the call is refused nothing changes.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None and os.sched_getscheduler(thread) == os.SCHED_OTHER:
        attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, round(turn_s * 1e9), 0, 0)
        ctypes.CDLL(None).syscall(number, thread, attributes, 0)


def threads(num: int, name: str) -> ThreadPoolExecutor:
    """A pool that gives way."""
    return ThreadPoolExecutor(num, name, initializer=give_way)
