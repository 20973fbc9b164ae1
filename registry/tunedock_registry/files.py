"""Uploaded files and result files: a row here, the bytes in the blob store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session
from tunedock_api.errors import NotFound

from . import idempotency
from .blobs import Blobs
from .clock import Clock
from .db import Database
from .ids import new_id
from .paging import page
from .records import Attempt, FileRecord, Order, Page
from .rows import to_record
from .staging import Staged, Staging
from .tables.core import BlobRow, FileRow

MAX_FILE_BYTES = 512 * 1024 * 1024
NO_ATTEMPT = Attempt()


class Files:
    """Files of all projects. Another project's file is as absent as one that never was. An expired file is gone."""

    def __init__(self, db: Database, blobs: Blobs, staging: Staging, clock: Clock) -> None:
        self._db = db
        self._blobs = blobs
        self._staging = staging
        self._clock = clock

    def create(
        self,
        project: str,
        filename: str,
        purpose: str,
        chunks: Iterable[bytes],
        expires_after_s: int | None = None,
        *,
        max_bytes: int | None = MAX_FILE_BYTES,
        attempt: Attempt = NO_ATTEMPT,
    ) -> FileRecord:
        """Streams `chunks` into the blob store; the file is `uploaded` and waits for validation.

        A repetition (`attempt`) returns what the first try made; `attempt.body_sha256` is filled in here. Raises BadInput (`payload_too_large`), Unavailable.
        """
        with self._staging.stage(chunks, max_bytes) as staged:
            self.store(staged)
            same = _same_request(attempt, filename, purpose, staged)
            with self._db.write() as session:
                known = idempotency.recall(session, project, "file", same, self._clock.now())
                row = self._find(session, project, known) if known else None
                if row is None:
                    row = self.insert(session, project, filename, purpose, staged, expires_after_s)
                    idempotency.remember(session, project, "file", same, row.id, self._clock.now())
                return _record(row)

    @property
    def staging(self) -> Staging:
        return self._staging

    def chunks(self, sha256: str) -> Iterator[bytes]:
        """A blob's bytes, a mebibyte at a time. Raises Unavailable."""
        with self._blobs.open(sha256) as stream:
            yield from iter(lambda: stream.read(1 << 20), b"")

    def store(self, staged: Staged) -> None:
        """Puts the bytes into the blob store. The row comes first: from then on the collector leaves them alone."""
        with self._db.write() as session:
            session.merge(BlobRow(sha256=staged.sha256, size_bytes=staged.size_bytes, touched_at=self._clock.now()))
        self._blobs.add(staged)

    def insert(
        self, session: Session, project: str, filename: str, purpose: str, staged: Staged, expires_after_s: int | None
    ) -> FileRow:
        """Adds the row of a stored blob, in the caller's transaction."""
        now = self._clock.now()
        row = FileRow(
            id=new_id("file-"),
            project=project,
            filename=filename,
            purpose=purpose,
            size_bytes=staged.size_bytes,
            sha256=staged.sha256,
            status="uploaded",
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        session.add(row)
        return row

    def find(self, session: Session, project: str, file_id: str) -> FileRecord | None:
        """In the caller's transaction; None when it is gone."""
        row = self._find(session, project, file_id)
        return None if row is None else _record(row)

    def get(self, project: str, file_id: str) -> FileRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return _record(self._require(session, project, file_id))

    def list(
        self,
        project: str,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Page[FileRecord]:
        """Raises BadInput for an unknown `after`."""
        scope = [FileRow.project == project, self._alive()]
        if purpose is not None:
            scope.append(FileRow.purpose == purpose)
        with self._db.read() as session:
            return page(session, FileRow, scope, _record, after=after, limit=limit, order=order)

    def delete(self, project: str, file_id: str) -> None:
        """The bytes stay until the collector finds that nothing refers to them. Raises NotFound."""
        with self._db.write() as session:
            session.delete(self._require(session, project, file_id))

    def open(self, project: str, file_id: str) -> BinaryIO:
        """Raises NotFound, Unavailable."""
        return self._blobs.open(self.get(project, file_id).sha256)

    def path(self, record: FileRecord) -> Path:
        """A local file with the bytes; read only."""
        return self._blobs.path(record.sha256)

    def set_result(
        self, file_id: str, status: Literal["processed", "error"], details: str | None, report: dict[str, Any]
    ) -> FileRecord:
        """What validation said. `details` is one sentence for people. Raises NotFound when deleted meanwhile."""
        with self._db.write() as session:
            row = session.scalar(select(FileRow).where(FileRow.id == file_id))
            if row is None:
                raise _not_found(file_id)
            row.status, row.status_details, row.report = status, details, report
            return _record(row)

    def unfinished(self) -> Sequence[FileRecord]:
        """Files still `uploaded`, oldest first: what a server that starts has to validate."""
        with self._db.read() as session:
            query = select(FileRow).where(FileRow.status == "uploaded", self._alive()).order_by(FileRow.seq)
            return [_record(row) for row in session.scalars(query)]

    def _alive(self) -> ColumnElement[bool]:
        return or_(FileRow.expires_at.is_(None), FileRow.expires_at > self._clock.now())

    def _find(self, session: Session, project: str, file_id: str) -> FileRow | None:
        return session.scalar(select(FileRow).where(FileRow.project == project, FileRow.id == file_id, self._alive()))

    def _require(self, session: Session, project: str, file_id: str) -> FileRow:
        row = self._find(session, project, file_id)
        if row is None:
            raise _not_found(file_id)
        return row


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id[:80]}", param="id")


def _record(row: FileRow) -> FileRecord:
    return to_record(FileRecord, row)


def _same_request(attempt: Attempt, filename: str, purpose: str, staged: Staged) -> Attempt:
    """The multipart body differs with every try (its boundary is random), so its parts stand for it."""
    parts = "\0".join((filename, purpose, staged.sha256))
    return replace(attempt, body_sha256=hashlib.sha256(parts.encode()).hexdigest())
