"""What the process sets up once, before torch allocates anything."""

from __future__ import annotations

import ctypes
import os
import sys

from tunedock_registry.background import give_way_as_process

# mallopt(3): keep big blocks in the heap and never hand them back, so that each step reuses warm pages.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 2**30


def keep_memory_warm() -> None:
    """With glibc, every tensor above 128 KiB is mapped, zeroed page by page and unmapped again, which costs a CPU
    training step about an eighth of its time. Other allocators (musl, tcmalloc) need nothing."""
    if not sys.platform.startswith("linux") or "tcmalloc" in os.environ.get("LD_PRELOAD", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)


def spin_briefly() -> None:
    """OpenMP threads spin while they wait for each other. Beside a busy server the one that is waited for has no core, and
    long spinning, libgomp's default, made a step six times slower; none at all costs an idle machine a fifth. Read when
    libgomp is loaded: call it before torch is imported. The operator's own setting wins."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def be_nice(increment: int) -> None:
    """Gives way to the server beside us. 0 is off."""
    if increment:
        give_way_as_process(increment)
