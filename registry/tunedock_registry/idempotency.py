"""Makes a repeated create return what the first one made; see `Attempt`.

A retry may overtake the first try, which then still waits somewhere in the server: what a retry has made alone is noted
as orphaned, and the first try, when it arrives, gets that.

Both halves run in the transaction of the create, and writers take turns: two copies of a request that run at once
cannot both find nothing. The table's primary key holds even if they could.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from tunedock_api.errors import Conflict

from .records import Attempt
from .tables.core import IdempotencyRow

KEY_LIFETIME_S = 24 * 3600
RETRY_WINDOW_S = 60
MAX_KEY_CHARS = 255


def recall(session: Session, project: str, kind: str, attempt: Attempt, now: int) -> str | None:
    """The id that an earlier copy of this request made. Raises Conflict when the key was used for another body."""
    if attempt.key is None:
        return _recall_by_body(session, project, kind, attempt, now)
    row = _find(session, project, kind, _key(attempt))
    if row is None or now - row.created_at > KEY_LIFETIME_S:
        return None
    if row.body_sha256 != attempt.body_sha256:
        raise Conflict(
            "This Idempotency-Key was used for a request with another body: use a new key for a new request.",
            "idempotency_conflict",
        )
    return row.object_id


def remember(session: Session, project: str, kind: str, attempt: Attempt, object_id: str, now: int) -> None:
    """Notes what this request made; the latest one counts."""
    if attempt.key is None and attempt.body_sha256 is None:
        return
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - KEY_LIFETIME_S))
    keys = [_key(attempt)]
    if attempt.retry and attempt.key is None:
        keys.append(_orphan(attempt))
    for key in keys:
        row = _find(session, project, kind, key) or IdempotencyRow(project=project, kind=kind, key=key)
        row.object_id, row.body_sha256, row.created_at = object_id, attempt.body_sha256, now
        session.add(row)


def _recall_by_body(session: Session, project: str, kind: str, attempt: Attempt, now: int) -> str | None:
    if attempt.body_sha256 is None:
        return None
    row = _find(session, project, kind, _key(attempt) if attempt.retry else _orphan(attempt))
    if row is None or now - row.created_at > RETRY_WINDOW_S:
        return None
    if not attempt.retry:
        session.delete(row)  # Only one first try belongs to it.
    return row.object_id


def _key(attempt: Attempt) -> str:
    return f"key:{attempt.key[:MAX_KEY_CHARS]}" if attempt.key is not None else f"body:{attempt.body_sha256}"


def _orphan(attempt: Attempt) -> str:
    return f"orphan:{attempt.body_sha256}"


def _find(session: Session, project: str, kind: str, key: str) -> IdempotencyRow | None:
    return session.scalar(
        select(IdempotencyRow).where(
            IdempotencyRow.project == project, IdempotencyRow.kind == kind, IdempotencyRow.key == key
        )
    )
