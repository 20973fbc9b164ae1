"""Work that can wait a little: beside streams of tokens it takes what these leave of the processors."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NICE = 10
"""A tenth of the share of an ordinary thread: enough not to starve, little enough that a step of the engine goes first."""
_AUTOGROUP, _TRIES = Path("/proc/self/autogroup"), 5


def give_way() -> None:
    """Lowers the priority of the calling thread, and of what it forks. Only Linux has priorities of threads (sched(7))."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))


def give_way_as_process(nice: int = NICE) -> None:
    """Lowers the priority of this process, before it starts threads.

    Where the kernel shares processors between sessions (sched(7), "The autogroup feature": the default of most
    distributions), a nice value counts inside its session only. A session that this process leads gets it as a whole.
    """
    nice = max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        _lower_session(nice)


def _lower_session(nice: int) -> None:
    for _ in range(_TRIES):
        try:
            _AUTOGROUP.write_text(str(nice))
        except BlockingIOError:  # one change in a tenth of a second, on the whole machine
            time.sleep(0.1)
        except OSError:  # a kernel without it
            return
        else:
            return


def threads(num: int, name: str) -> ThreadPoolExecutor:
    """A pool that gives way."""
    return ThreadPoolExecutor(num, name, initializer=give_way)
