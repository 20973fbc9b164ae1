"""Who is using which version right now.

A request takes a lease at admission and gives it back on every path: finish, error, disconnect, cancel, `n > 1`, and a
stream that nobody ever iterated. A version is unloaded and its files are collected only at zero leases. SGLang's lesson
(sglang#36894): one leaked counter hangs an unload for ever, so a lease is released exactly once, however often it is
asked to, and a lease object that is dropped without release gives itself back when it is collected.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .pool import Pours, Take

T = TypeVar("T")
BASE = ""  # the key of leases on the base model


@dataclass(eq=False)
class Lease:
    """One request's hold on one digest. `release` may be called any number of times."""

    digest: str
    _finish: weakref.finalize[[str], Lease] = field(init=False, repr=False)

    def release(self) -> None:
        self._finish()

    @property
    def held(self) -> bool:
        return self._finish.alive


@dataclass
class Leases:
    """Counts per digest. The garbage collector may call a finalizer on any thread, hence the (re-entrant) lock."""

    _counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def acquire(self, digest: str | None) -> Lease:
        key = digest or BASE
        with self._lock:
            self._counts[key] += 1
        lease = Lease(key)
        lease._finish = weakref.finalize(lease, self._give_back, key)
        return lease

    @contextmanager
    def hold(self, digest: str | None) -> Iterator[Lease]:
        lease = self.acquire(digest)
        try:
            yield lease
        finally:
            lease.release()

    def _give_back(self, key: str) -> None:
        with self._lock:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def count(self, digest: str | None) -> int:
        return self._counts.get(digest or BASE, 0)

    def total(self) -> int:
        return sum(self._counts.values())

    def in_use(self) -> set[str]:
        """Digests with at least one lease, without the base model."""
        return {digest for digest in self._counts if digest != BASE}


class LeasedStream(Generic[T]):
    """An answer's parts (SSE bytes, token deltas) with its lease. Closing releases, also when nothing was ever read."""

    def __init__(self, source: AsyncIterator[T], release: Callable[[], None], first: Sequence[T] = ()) -> None:
        """`first`: parts that were taken from `source` already."""
        self._source = source
        self._first = first
        self._finish = weakref.finalize(self, release)

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        """A generator, not `__anext__`: one frame for every part is all that this costs."""
        try:
            for part in self._first:
                yield part
            async for part in self._source:
                yield part
        finally:
            self._finish()

    async def pour(self, take: Take[T]) -> None:
        """Gives every part to `take`, instead of iterating."""
        try:
            for part in self._first:
                await _taken(take, part)
            if isinstance(self._source, Pours):
                await self._source.pour(take)
            else:
                async for part in self._source:
                    await _taken(take, part)
        finally:
            self._finish()

    async def aclose(self) -> None:
        """Stops the generation, then releases. Safe to call twice."""
        try:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._finish()


async def _taken(take: Take[T], part: T) -> None:
    if (full := take(part)) is not None:
        await full()
