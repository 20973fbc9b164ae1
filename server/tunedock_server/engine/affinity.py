"""Compute threads on processors of their own, on machines that have no others.

An operator of a decode step computes for 5 to 50 us on all its threads. Linux likes to wake a thread on the processor of the
one that wakes it, where the two then wait for each other's turn, hundreds of times a step.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from . import kernel

_MAX_CPUS = 1024  # of a cpu_set_t
_all: frozenset[int] = frozenset()


def bind_compute_threads() -> bool:
    """For the thread that runs the steps. False where there are processors to spare, or nothing to bind with."""
    global _all
    library, threads = kernel.library(), torch.get_num_threads()
    if sys.platform != "linux" or library is None or threads < 2:
        return False
    cpus = sorted(os.sched_getaffinity(0))
    # With processors to spare the kernel finds idle ones, and two servers must not choose the same.
    if threads != len(cpus) or cpus[-1] >= _MAX_CPUS:
        return False
    _all = frozenset(cpus)
    return int(library.tunedock_bind((ctypes.c_int32 * threads)(*cpus), threads)) == threads


def run_anywhere() -> None:
    """For a thread that was started by a bound one: threads inherit where they may run."""
    if _all:
        os.sched_setaffinity(0, _all)
