"""Walking the service's lists: `{data, has_more}` pages, next page `after` the last item's id."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from .operations import Json, Operation, Transport
from .types import Wire

W = TypeVar("W", bound=Wire)
_PAGE = 100


async def walk(
    transport: Transport,
    operation: Operation,
    kind: type[W],
    path: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
    *,
    limit: int | None = None,
    cursor: str = "id",
) -> AsyncIterator[W]:
    """Yields at most `limit` items (None: all) over as many pages as that takes."""
    left, after = limit, None
    while left is None or left > 0:
        size = _PAGE if left is None else min(left, _PAGE)
        page = await transport.call(operation, path, {**(query or {}), "limit": size, "after": after})
        items: list[Json] = page.get("data", [])
        for item in items[:left]:
            yield kind.model_validate(item)
        if not page.get("has_more") or not items:
            return
        after = items[-1].get(cursor)
        left = None if left is None else left - len(items)


async def collect(
    transport: Transport,
    operation: Operation,
    kind: type[W],
    path: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
    *,
    limit: int | None = None,
    cursor: str = "id",
) -> list[W]:
    """The items of `walk` as a list."""
    return [item async for item in walk(transport, operation, kind, path, query, limit=limit, cursor=cursor)]
