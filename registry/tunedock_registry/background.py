"""Work that can wait a little: beside streams of tokens it takes what these leave of the processors."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

NICE = 10
"""A tenth of the share of an ordinary thread: enough not to starve, little enough that a step of the engine goes first."""


def give_way() -> None:
    """Lowers the priority of the calling thread, and of what it forks. Only Linux has priorities of threads (sched(7))."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))


def threads(num: int, name: str) -> ThreadPoolExecutor:
    """A pool that gives way."""
    return ThreadPoolExecutor(num, name, initializer=give_way)
