"""Makes a repeated create return what the first one made; see `Attempt`.

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
    row = _find(session, project, kind, _key(attempt)) if _key(attempt) else None
    if row is None:
        return None
    if attempt.key is None:
        return row.object_id if attempt.retry and now - row.created_at <= RETRY_WINDOW_S else None
    if now - row.created_at > KEY_LIFETIME_S:
        return None
    if row.body_sha256 != attempt.body_sha256:
        raise Conflict(
            "This Idempotency-Key was used for a request with another body: use a new key for a new request.",
            "idempotency_conflict",
        )
    return row.object_id


def remember(session: Session, project: str, kind: str, attempt: Attempt, object_id: str, now: int) -> None:
    """Notes what this request made; the latest one counts."""
    key = _key(attempt)
    if key is None:
        return
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - KEY_LIFETIME_S))
    row = _find(session, project, kind, key)
    if row is not None:
        session.delete(row)
        session.flush()
    session.add(
        IdempotencyRow(
            project=project, kind=kind, key=key, object_id=object_id, body_sha256=attempt.body_sha256, created_at=now
        )
    )


def _key(attempt: Attempt) -> str | None:
    if attempt.key is not None:
        return f"key:{attempt.key[:MAX_KEY_CHARS]}"
    return f"body:{attempt.body_sha256}" if attempt.body_sha256 else None


def _find(session: Session, project: str, kind: str, key: str | None) -> IdempotencyRow | None:
    return session.scalar(
        select(IdempotencyRow).where(
            IdempotencyRow.project == project, IdempotencyRow.kind == kind, IdempotencyRow.key == key
        )
    )
