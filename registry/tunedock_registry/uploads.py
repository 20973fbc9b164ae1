"""Large files in parts. Parts may come in parallel and in any order; `complete` says which ones make the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput, NotFound

from . import idempotency
from .clock import Clock
from .db import Database
from .files import NO_ATTEMPT, Files
from .ids import new_id
from .records import Attempt, PartRecord, UploadRecord
from .rows import to_record
from .staging import Staged
from .tables.uploads import PartRow, UploadRow

MAX_UPLOAD_BYTES = 8 * 2**30
MAX_PART_BYTES = 64 * 2**20
LIFETIME_S = 3600


class Uploads:
    """Uploads of all projects. Another project's upload is as absent as one that never was."""

    def __init__(self, db: Database, files: Files, clock: Clock) -> None:
        self._db = db
        self._files = files
        self._clock = clock

    def create(
        self,
        project: str,
        filename: str,
        purpose: str,
        size_bytes: int,
        mime_type: str,
        expires_after_s: int | None = None,
        *,
        attempt: Attempt = NO_ATTEMPT,
    ) -> UploadRecord:
        """An upload that takes parts for an hour; `expires_after_s` is about the file that comes of it.

        Raises BadInput for a size that is not within 1 byte and 8 GiB; Conflict as `Jobs.create`.
        """
        if not 1 <= size_bytes <= MAX_UPLOAD_BYTES:
            raise BadInput(f"bytes is {size_bytes}: it must be within 1 and {MAX_UPLOAD_BYTES}.", param="bytes")
        now = self._clock.now()
        with self._db.write() as session:
            known = idempotency.recall(session, project, "upload", attempt, now)
            if known is not None:
                return self._record(session, _require(session, project, known))
            row = UploadRow(
                id=new_id("upload_"),
                project=project,
                filename=filename,
                purpose=purpose,
                mime_type=mime_type,
                size_bytes=size_bytes,
                status="pending",
                expires_after_s=expires_after_s,
                created_at=now,
                expires_at=now + LIFETIME_S,
            )
            session.add(row)
            idempotency.remember(session, project, "upload", attempt, row.id, now)
            return self._record(session, row)

    def get(self, project: str, upload_id: str) -> UploadRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return self._record(session, _require(session, project, upload_id))

    def add_part(
        self, project: str, upload_id: str, chunks: Iterable[bytes], *, attempt: Attempt = NO_ATTEMPT
    ) -> PartRecord:
        """Stores one part. A repetition (`attempt`) of the same bytes returns the part of the first try.

        Raises NotFound; BadInput: `payload_too_large` above 64 MiB, `invalid_state` unless the upload is pending.
        """
        upload = self.get(project, upload_id)
        _require_pending(upload)
        with self._files.staging.stage(chunks, MAX_PART_BYTES) as staged:
            self._files.store(staged)
            with self._db.write() as session:
                return self._insert(session, project, upload_id, staged, attempt)

    def _insert(self, session: Session, project: str, upload_id: str, staged: Staged, attempt: Attempt) -> PartRecord:
        row = _require(session, project, upload_id)
        _require_pending(self._record(session, row))
        if first := _first_try(session, row, staged, attempt):
            return to_record(PartRecord, first)
        stored = session.scalar(select(func.sum(PartRow.size_bytes)).where(PartRow.upload_id == upload_id)) or 0
        if stored + staged.size_bytes > 2 * max(row.size_bytes, MAX_PART_BYTES):
            raise BadInput(
                f"Upload {upload_id} has {stored} bytes of parts for a file of {row.size_bytes}: complete it with the "
                "parts that are there, or cancel it.",
                "payload_too_large",
            )
        part = PartRow(
            id=new_id("part_"),
            upload_id=upload_id,
            size_bytes=staged.size_bytes,
            sha256=staged.sha256,
            created_at=self._clock.now(),
        )
        session.add(part)
        return to_record(PartRecord, part)

    def parts(self, project: str, upload_id: str) -> list[PartRecord]:
        """All parts, in the order in which they came: where to go on with a broken transfer. Raises NotFound."""
        with self._db.read() as session:
            _require(session, project, upload_id)
            query = select(PartRow).where(PartRow.upload_id == upload_id).order_by(PartRow.seq)
            return [to_record(PartRecord, row) for row in session.scalars(query)]

    def complete(self, project: str, upload_id: str, part_ids: Sequence[str], md5: str | None = None) -> UploadRecord:
        """Joins the parts into a file. Completing again with the same parts returns the same file.

        `md5` is the hex digest of the whole file. Raises NotFound; BadInput when a part is not of this upload, the
        sizes do not add up, the digest differs, or the upload is over.
        """
        with self._db.read() as session:
            row = _require(session, project, upload_id)
            if done := self._completed(session, row, part_ids):
                return done
            upload = self._record(session, row)
            _require_pending(upload)
            parts = _parts(session, upload, part_ids)
        with self._files.staging.stage(self._join(parts)) as staged:
            if md5 is not None and staged.md5 != md5.lower():
                raise BadInput(f"The parts have md5 {staged.md5}, not {md5[:64]}: send them again.", param="md5")
            self._files.store(staged)
            with self._db.write() as session:
                return self._finish(session, upload, part_ids, staged)

    def _finish(self, session: Session, upload: UploadRecord, part_ids: Sequence[str], staged: Staged) -> UploadRecord:
        row = _require(session, upload.project, upload.id)
        if done := self._completed(session, row, part_ids):
            return done
        _require_pending(self._record(session, row))
        file = self._files.insert(session, row.project, row.filename, row.purpose, staged, row.expires_after_s)
        session.flush()
        row.status, row.file_id, row.part_ids = "completed", file.id, list(part_ids)
        return self._record(session, row)

    def cancel(self, project: str, upload_id: str) -> UploadRecord:
        """No part is taken from here on. Cancelling again is fine. Raises NotFound; BadInput when it is over."""
        with self._db.write() as session:
            row = _require(session, project, upload_id)
            if row.status != "cancelled":
                _require_pending(self._record(session, row))
                row.status = "cancelled"
            return self._record(session, row)

    def _completed(self, session: Session, row: UploadRow, part_ids: Sequence[str]) -> UploadRecord | None:
        if row.status != "completed" or row.part_ids != list(part_ids):
            return None
        return self._record(session, row)

    def _join(self, parts: Sequence[PartRecord]) -> Iterator[bytes]:
        for part in parts:
            yield from self._files.chunks(part.sha256)

    def _record(self, session: Session, row: UploadRow) -> UploadRecord:
        file = self._files.find(session, row.project, row.file_id) if row.file_id else None
        over = row.status == "pending" and self._clock.now() >= row.expires_at
        return to_record(UploadRecord, row, file=file, status="expired" if over else row.status)


def _require(session: Session, project: str, upload_id: str) -> UploadRow:
    row = session.scalar(select(UploadRow).where(UploadRow.project == project, UploadRow.id == upload_id))
    if row is None:
        raise NotFound(f"No such Upload object: {upload_id[:80]}", param="id")
    return row


def _require_pending(upload: UploadRecord) -> None:
    if upload.status != "pending":
        raise BadInput(f"The upload {upload.id} is {upload.status}: start a new one.", "invalid_state")


def _first_try(session: Session, upload: UploadRow, staged: Staged, attempt: Attempt) -> PartRow | None:
    """A part is told by its bytes: a repetition within one upload needs no memory of its own."""
    if not attempt.retry and attempt.key is None:
        return None
    query = select(PartRow).where(PartRow.upload_id == upload.id, PartRow.sha256 == staged.sha256)
    return session.scalar(query.order_by(PartRow.seq.desc()).limit(1))


def _parts(session: Session, upload: UploadRecord, part_ids: Sequence[str]) -> list[PartRecord]:
    rows = session.scalars(select(PartRow).where(PartRow.upload_id == upload.id, PartRow.id.in_(part_ids)))
    known = {row.id: to_record(PartRecord, row) for row in rows}
    unknown = [part for part in part_ids if part not in known]
    if unknown:
        raise BadInput(f"Part {unknown[0][:80]!r} does not belong to upload {upload.id}.", param="part_ids")
    if len(known) != len(part_ids):
        raise BadInput("part_ids names a part twice.", param="part_ids")
    total = sum(part.size_bytes for part in known.values())
    if total != upload.size_bytes:
        raise BadInput(
            f"The parts have {total} bytes together, and the upload was announced with {upload.size_bytes}.",
            param="part_ids",
        )
    return [known[part] for part in part_ids]
