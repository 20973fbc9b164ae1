"""A stream that tells exactly once when it is over, also when nobody ever iterated it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any


class Tracked(AsyncGenerator[bytes, None]):
    """Wraps `inner`; `done` is called at its end, on an error, or by `aclose`.

    A plain generator would not do: closing one that never started does not run its `finally`.
    """

    def __init__(self, inner: AsyncGenerator[bytes, None], done: Callable[[], None]) -> None:
        self._inner = inner
        self._done: Callable[[], None] | None = done

    def _over(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done()

    async def asend(self, value: None) -> bytes:
        try:
            return await self._inner.asend(value)
        except BaseException:
            self._over()
            raise

    async def athrow(self, *error: Any) -> bytes:
        try:
            return await self._inner.athrow(*error)
        except BaseException:
            self._over()
            raise

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._over()
