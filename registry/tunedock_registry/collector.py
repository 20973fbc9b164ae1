"""Removes what nothing refers to any more. Safe to run at any time, from several processes, and to be killed.

A blob's row is written before its bytes, and both are removed under the writer's lock, once nothing has referred to the
blob for a grace time that is longer than any upload takes. Whoever stores the same bytes meanwhile either touches the
row first (then the blob stays) or comes after the removal (then it stores them anew).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, exists, select, update
from sqlalchemy.orm import Session

from .blobs import Blobs
from .clock import Clock
from .db import Database
from .durable import DurableFS, typed_io
from .tables.core import BlobRow, FileRow, IdempotencyRow
from .tables.uploads import PartRow, UploadRow
from .tables.webhooks import WebhookEventRow

GRACE_S = 24 * 3600
KEEP_EVENTS_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Collected:
    """How many were removed."""

    blobs: int
    size_bytes: int
    leftovers: int


@dataclass(frozen=True)
class Collector:
    db: Database
    blobs: Blobs
    fs: DurableFS
    clock: Clock
    tmp: Path

    def collect(self, grace_s: int = GRACE_S) -> Collected:
        """Raises Unavailable when the disk or the database fails; what was removed until then stays removed."""
        before = self.clock.now() - grace_s
        with self.db.write() as session:
            self._expire(session)
        with self.db.read() as session:
            unused = session.scalars(select(BlobRow.sha256).where(_unused(before))).all()
        sizes = [size for sha256 in unused if (size := self._remove(sha256, before)) is not None]
        self.blobs.trim(before)
        return Collected(len(sizes), sum(sizes), self._remove_leftovers(before))

    def _expire(self, session: Session) -> None:
        now = self.clock.now()
        session.execute(delete(FileRow).where(FileRow.expires_at <= now))
        over = and_(UploadRow.status == "pending", UploadRow.expires_at <= now)
        session.execute(update(UploadRow).where(over).values(status="expired"))
        finished = select(UploadRow.id).where(UploadRow.status != "pending")
        session.execute(delete(PartRow).where(PartRow.upload_id.in_(finished)))
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now - GRACE_S))
        session.execute(delete(WebhookEventRow).where(WebhookEventRow.created_at < now - KEEP_EVENTS_S))

    def _remove(self, sha256: str, before: int) -> int | None:
        """The blob's size, or None when somebody has come to use it."""
        with self.db.write() as session:
            row = session.scalar(select(BlobRow).where(BlobRow.sha256 == sha256, _unused(before)))
            if row is None:
                return None
            session.delete(row)
            session.flush()
            self.blobs.delete(sha256)
            return row.size_bytes

    def _remove_leftovers(self, before: int) -> int:
        """Private files of processes that died while storing."""
        num = 0
        with typed_io():
            for path in self.tmp.glob("blob-*"):
                with suppress(FileNotFoundError):  # whoever stores it has renamed it, or another collector was faster
                    if path.stat().st_mtime < before:
                        self.fs.unlink(path)
                        num += 1
        return num


def _unused(before: int) -> ColumnElement[bool]:
    return and_(
        BlobRow.touched_at < before,
        ~exists().where(FileRow.sha256 == BlobRow.sha256),
        ~exists().where(PartRow.sha256 == BlobRow.sha256),
    )
