"""Lists: ordered by `seq`, paged by the id of the last item seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput

from .records import Order, Page
from .tables.base import Sequenced

R = TypeVar("R", bound=Sequenced)
T = TypeVar("T")


def page(
    session: Session,
    table: type[R],
    scope: Sequence[ColumnElement[bool]],
    record: Callable[[R], T],
    *,
    after: str | None = None,
    limit: int = 20,
    order: Order = "desc",
) -> Page[T]:
    """At most `limit` (1 or more) rows of `table` within `scope`. Raises BadInput for an `after` that is not in it."""
    query = select(table).where(*scope).order_by(table.seq.desc() if order == "desc" else table.seq.asc())
    if after is not None:
        seq = _seq_of(session, table, scope, after)
        query = query.where(table.seq < seq if order == "desc" else table.seq > seq)
    rows = session.scalars(query.limit(limit + 1)).all()
    return Page([record(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _seq_of(session: Session, table: type[Any], scope: Sequence[ColumnElement[bool]], after: str) -> int:
    seq: int | None = session.scalar(select(table.seq).where(*scope, table.id == after))
    if seq is None:
        raise BadInput(
            f"No item {after[:80]!r} to continue after: use the id of the last item received.", param="after"
        )
    return seq
