"""Adapter files in memory without a copy: mapped, and safe from whoever changes them.

Reading 10 MB takes over a millisecond of a processor that the steps need; mapping what is in the page cache takes a tenth. But
a process that touches a mapped page whose file was truncated is killed. So a read lease is taken first (fcntl(2),
F_SETLEASE): whoever opens the file to write has to wait until it is given back, and by then its bytes have been copied into
memory of our own at the same addresses. Where there are no leases (other systems, network file systems, somebody else's file)
the file is read.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# The kernel lets a writer wait for /proc/sys/fs/lease-break-time (45 s), then takes the lease away.
WATCH_EVERY_S = 0.25
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_PAGE = mmap.PAGESIZE
_log = logging.getLogger("tunedock.engine")


def file_bytes(path: Path) -> torch.Tensor:
    """The file's bytes `[n]`, for as long as the tensor or a view of it lives. Raises OSError, ValueError when it is empty."""
    if not sys.platform.startswith("linux"):
        return _read(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lease(fd)
    except OSError:
        os.close(fd)
        return _read(path)
    return _mapped(fd)


def _read(path: Path) -> torch.Tensor:
    """The safetensors package would hold the interpreter meanwhile, so that every stream waits."""
    with path.open("rb", buffering=0) as stream:
        data = torch.empty(os.fstat(stream.fileno()).st_size, dtype=torch.uint8)
        whole: Any = data.numpy()
        rest = memoryview(whole)
        while rest and (num := stream.readinto(rest)):
            rest = rest[num:]
    if rest or not len(data):
        raise ValueError("its end is missing" if rest else "it is empty")
    return data


def _lease(fd: int) -> None:
    """Raises OSError where it cannot be had, also when somebody has the file open to write. Its loss is asked for, not waited
    for: the signal is one that is ignored unless a process wants it."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def _mapped(fd: int) -> torch.Tensor:
    num_bytes = os.fstat(fd).st_size
    address = _mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0) if num_bytes else _FAILED
    if address == _FAILED or address is None:
        os.close(fd)
        raise ValueError("it is empty or cannot be mapped")
    # Reads all pages and keeps them, as far as the process may (RLIMIT_MEMLOCK); others come when they are touched.
    _mlock(address, num_bytes)
    data = torch.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), dtype=torch.uint8)
    leases.keep(fd, data)
    return data


class Leases:
    """Those that this process holds. A thread asks for each several times a second whether somebody wants it back. What
    nobody has any more is unmapped then, or before the next one is kept, but not at once: the garbage collector may tell on any
    thread, also one that is at work here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[int, int]] = {}  # fd -> where its bytes are, and how many
        self._unused: deque[tuple[int, int, int]] = deque()
        self._watching = False

    def keep(self, fd: int, data: torch.Tensor) -> None:
        """With its mapping, until nobody has `data` any more."""
        place = data.data_ptr(), data.nbytes
        with self._lock:
            self._let_go()
            self._held[fd] = place
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="tunedock-leases", daemon=True).start()
        # The storage lives as long as any view; the tensor object may be gone before.
        end = weakref.finalize(data.untyped_storage(), self._unused.append, (fd, *place))
        end.atexit = False  # the process takes its memory along; threads may still read it

    def num_held(self) -> int:
        with self._lock:
            self._let_go()
            return len(self._held)

    def give_back_what_is_wanted(self) -> None:
        with self._lock:
            self._let_go()
            wanted = [fd for fd in self._held if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK]
            for fd in wanted:
                own_the_bytes(*self._held[fd])
                self._close(fd)

    def _let_go(self) -> None:
        while self._unused:
            fd, address, num_bytes = self._unused.popleft()
            if self._held.get(fd) == (address, num_bytes):  # else its bytes are our own already
                self._close(fd)
            _munmap(address, num_bytes)

    def _close(self, fd: int) -> None:
        del self._held[fd]
        os.close(fd)  # gives the lease back

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_EVERY_S)
            try:
                self.give_back_what_is_wanted()
            except (OSError, MemoryError):
                # The writer waits on; the next round tries again.
                _log.exception("an adapter file that somebody wants to write cannot be copied")


def own_the_bytes(address: int, num_bytes: int) -> None:
    """Puts a copy of the mapped pages in their place. Whoever reads them meanwhile sees the same bytes before and after."""
    size = -(-num_bytes // _PAGE) * _PAGE
    copy = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if copy is None or copy == _FAILED:
        raise MemoryError(f"no memory for a copy of {num_bytes} bytes")
    ctypes.memmove(copy, address, num_bytes)
    if _mremap is None or _mremap(copy, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, address) != address:
        error = ctypes.get_errno()
        _munmap(copy, size)
        raise OSError(error, "mremap")


_FAILED = ctypes.c_void_p(-1).value


def _libc(name: str, *arguments: type) -> Callable[..., int | None]:
    function: Callable[..., int | None] = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_void_p  # type: ignore[attr-defined]
    function.argtypes = arguments  # type: ignore[attr-defined]
    return function


_pages = ctypes.c_void_p, ctypes.c_size_t
_mmap = _libc("mmap", *_pages, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap, _mlock = _libc("munmap", *_pages), _libc("mlock", *_pages)
_mremap = _libc("mremap", *_pages, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p) if sys.platform == "linux" else None
leases = Leases()
