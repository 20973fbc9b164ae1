"""What is there: adapters, versions, aliases, history, and the snapshot that requests are resolved against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput, Conflict, NotFound
from tunedock_api.manifest import MANIFEST_FILE, canonical_json

from ..clock import Clock
from ..db import Database
from ..durable import typed_io
from ..records import AdapterRecord, AliasRecord, HistoryRecord, Page, VersionRecord, VersionState
from ..tables.adapters import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from .card import evaluation_section
from .folders import CARD_FILE, PUBLIC_FILES, Folders
from .following import Follower
from .rows import (
    adapter_record,
    alias_record,
    find_adapter,
    find_alias,
    find_numbered,
    find_tagged,
    find_version,
    history_record,
    load_manifest,
    version_record,
    versions_query,
)
from .snapshot import Snapshot
from .versions import WAITING


class Reading:
    """`by_id`, `pending` and `in_state` fill in `manifest.probe`; all else leaves it out."""

    def __init__(self, db: Database, folders: Folders, clock: Clock) -> None:
        self._db = db
        self._folders = folders
        self._clock = clock
        self._follower = Follower()

    def get(self, project: str, name: str) -> AdapterRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return adapter_record(find_adapter(session, project, name))

    def list(self, project: str, after: str | None = None, limit: int = 20) -> Page[AdapterRecord]:
        """Newest first; `after` is the name of the last one seen. Raises BadInput when there is none of that name."""
        with self._db.read() as session:
            query = select(AdapterRow).where(AdapterRow.project == project, AdapterRow.deleted_at.is_(None))
            if after is not None:
                query = query.where(AdapterRow.seq < _adapter_seq(session, project, after))
            rows = session.scalars(query.order_by(AdapterRow.seq.desc()).limit(limit + 1)).all()
            return Page([adapter_record(row) for row in rows[:limit]], len(rows) > limit)

    def versions(self, project: str, name: str, after: int | None = None, limit: int = 100) -> Page[VersionRecord]:
        """Newest first, checkpoints included; `after` is a version's id. Raises NotFound."""
        with self._db.read() as session:
            adapter = find_adapter(session, project, name)
            query = select(VersionRow).where(VersionRow.adapter_seq == adapter.seq)
            if after is not None:
                query = query.where(VersionRow.seq < after)
            rows = session.scalars(query.order_by(VersionRow.seq.desc()).limit(limit + 1)).all()
            items = [_brief(row, adapter) for row in rows[:limit]]
            return Page(items, len(rows) > limit)

    def version(self, project: str, name: str, number: int) -> VersionRecord:
        """Raises NotFound (`model_not_found`)."""
        with self._db.read() as session:
            return _brief(*find_numbered(session, project, name, number))

    def by_tag(self, project: str, name: str, tag: str) -> VersionRecord:
        """A checkpoint, by the part of its reference after '@'. Raises NotFound (`model_not_found`)."""
        with self._db.read() as session:
            return _brief(*find_tagged(session, project, name, tag))

    def by_id(self, version_id: int) -> VersionRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return _full(*find_version(session, version_id))

    def pending(self) -> Sequence[VersionRecord]:
        """What waits for the gate, oldest first: published, or left in verifying by a server that stopped."""
        return self.in_state(*WAITING)

    def in_state(self, *states: VersionState) -> Sequence[VersionRecord]:
        """Versions of all projects, oldest first."""
        with self._db.read() as session:
            rows = session.execute(versions_query().where(VersionRow.state.in_(states)).order_by(VersionRow.seq))
            return [_full(row, adapter) for row, adapter in rows]

    def alias(self, project: str, name: str, alias: str) -> AliasRecord:
        """Raises NotFound, also for a deleted alias."""
        with self._db.read() as session:
            adapter = find_adapter(session, project, name)
            row = find_alias(session, adapter, alias)
            if row is None or not row.targets:
                raise NotFound(f"No alias {alias[:80]!r} of adapter {name!r}.", param="alias")
            return alias_record(row, adapter)

    def aliases(self, project: str, name: str) -> Sequence[AliasRecord]:
        """By name. Raises NotFound."""
        with self._db.read() as session:
            adapter = find_adapter(session, project, name)
            query = select(AliasRow).where(AliasRow.adapter_seq == adapter.seq).order_by(AliasRow.alias)
            return [alias_record(row, adapter) for row in session.scalars(query) if row.targets]

    def history(self, project: str, name: str, after: str | None = None, limit: int = 20) -> Page[HistoryRecord]:
        """Moves of all aliases, newest first; `after` is the id of a move. Raises NotFound, BadInput."""
        with self._db.read() as session:
            adapter = find_adapter(session, project, name)
            scope: list[ColumnElement[bool]] = [AliasMoveRow.adapter_seq == adapter.seq]
            rows = _page_of_moves(session, scope, after, limit)
            return Page([history_record(row, adapter) for row in rows[:limit]], len(rows) > limit)

    def path(self, version: VersionRecord) -> Path:
        """A local folder with the version's files; read only.

        Raises Conflict (`version_not_ready`) when they were collected, Unavailable (`adapter_unavailable`) when they are
        missing or damaged.
        """
        if version.state in ("rejected", "retired") and not self._folders.exists(version.digest):
            raise Conflict(
                f"{version.ref} is {version.state} and its files are removed: publish the adapter again.",
                "version_not_ready",
            )
        return self._folders.path(version.digest)

    def fetch(self, digest: str) -> Path:
        """As `path`, for whoever knows only the digest."""
        return self._folders.path(digest)

    def is_here(self, digest: str) -> bool:
        """Whether `fetch` would only look: the folder is on this machine."""
        return self._folders.is_here(digest)

    def open_file(self, version: VersionRecord, name: str) -> BinaryIO:
        """One of the version's files, for download; card and manifest with what was measured since. Raises NotFound,
        Unavailable."""
        if name not in PUBLIC_FILES:
            raise NotFound(f"A version has no file {name[:80]!r}; it has {', '.join(PUBLIC_FILES)}.", param="file")
        folder = self.path(version)
        with typed_io():
            stream = (folder / name).open("rb")
        # An imported version may claim anything there.
        report = version.metrics.get("evaluation") if version.job_id else None
        measured = _MEASURED.get(name)
        if report is None or measured is None:
            return stream
        with stream, typed_io():
            return BytesIO(measured(stream.read(), report))

    def snapshot(self) -> Snapshot:
        """The state at this moment; the same object while nothing has changed. Cheap enough to call ten times a second."""
        with self._db.read() as session:
            return self.snapshot_in(session)

    def snapshot_in(self, session: Session) -> Snapshot:
        return self._follower.snapshot(session)

    def waits_in(self, session: Session) -> bool:
        """Whether there is anything `pending`."""
        return session.scalar(select(VersionRow.seq).where(VersionRow.state.in_(WAITING)).limit(1)) is not None


def _card(raw: bytes, report: Mapping[str, Any]) -> bytes:
    return raw + evaluation_section(report).encode()


def _manifest(raw: bytes, report: Mapping[str, Any]) -> bytes:
    """The digest stays: it is taken of the manifest's `identity`."""
    manifest = json.loads(raw)
    return canonical_json({**manifest, "metrics": {**manifest["metrics"], "evaluation": report}})


_MEASURED = {CARD_FILE: _card, MANIFEST_FILE: _manifest}


def _brief(row: VersionRow, adapter: AdapterRow) -> VersionRecord:
    return version_record(row, adapter, load_manifest(row, probe=False))


def _full(row: VersionRow, adapter: AdapterRow) -> VersionRecord:
    return version_record(row, adapter, load_manifest(row, probe=True))


def _adapter_seq(session: Session, project: str, name: str) -> int:
    seq = session.scalar(select(AdapterRow.seq).where(AdapterRow.project == project, AdapterRow.name == name))
    if seq is None:
        raise BadInput(f"No adapter {name[:80]!r} to continue after.", param="after")
    return seq


def _page_of_moves(
    session: Session, scope: list[ColumnElement[bool]], after: str | None, limit: int
) -> list[AliasMoveRow]:
    if after is not None:
        seq = session.scalar(select(AliasMoveRow.seq).where(*scope, AliasMoveRow.id == after))
        if seq is None:
            raise BadInput(f"No move {after[:80]!r} to continue after.", param="after")
        scope = [*scope, AliasMoveRow.seq < seq]
    return list(session.scalars(select(AliasMoveRow).where(*scope).order_by(AliasMoveRow.seq.desc()).limit(limit + 1)))
