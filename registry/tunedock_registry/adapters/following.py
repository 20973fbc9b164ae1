"""Keeps a snapshot up to date: after a change only what is new is read, however many versions there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..records import AliasRecord, VersionRecord
from ..tables.adapters import AdapterRow, AliasRow, VersionRow
from ..tables.base import ChangeCounter
from .rows import load_manifest, targets, version_record, versions_query
from .snapshot import Snapshot, build

_ID_CHUNK = 500


class Follower:
    """What a version is does not change while it is `ready`, but for its pin; so its record is kept and reused."""

    def __init__(self) -> None:
        self._latest: Snapshot | None = None
        self._ready: dict[int, VersionRecord] = {}

    def snapshot(self, session: Session) -> Snapshot:
        """As of `session`; the same object while the change counter stands still."""
        counter = session.scalars(select(ChangeCounter.value)).one()
        known = self._latest
        if known is None or known.counter != counter:
            self._ready = _read_ready(session, self._ready)
            known = self._latest = build(counter, self._ready.values(), _read_aliases(session))
        return known


def _read_ready(session: Session, known: dict[int, VersionRecord]) -> dict[int, VersionRecord]:
    query = select(VersionRow.seq, VersionRow.pinned).where(VersionRow.state == "ready").order_by(VersionRow.seq)
    pins = dict(session.execute(query).tuples().all())
    records = {**known, **_load(session, [version_id for version_id in pins if version_id not in known])}
    return {version_id: _with_pin(records[version_id], pinned) for version_id, pinned in pins.items()}


def _with_pin(record: VersionRecord, pinned: bool) -> VersionRecord:
    return record if record.pinned == pinned else replace(record, pinned=pinned)


def _load(session: Session, ids: Sequence[int]) -> dict[int, VersionRecord]:
    found: dict[int, VersionRecord] = {}
    for begin in range(0, len(ids), _ID_CHUNK):
        query = versions_query().where(VersionRow.seq.in_(ids[begin : begin + _ID_CHUNK]))
        for row, adapter in session.execute(query):
            found[row.seq] = version_record(row, adapter, load_manifest(row, probe=False))
    return found


def _read_aliases(session: Session) -> list[AliasRecord]:
    """Columns, not entities: with thousands of rows that is most of the time."""
    query = select(
        AdapterRow.project,
        AdapterRow.name,
        AliasRow.alias,
        AliasRow.targets,
        AliasRow.revision,
        AliasRow.updated_at,
    ).join(AdapterRow, AdapterRow.seq == AliasRow.adapter_seq)
    return [
        AliasRecord(project, name, alias, targets(points_to), revision, updated_at)
        for project, name, alias, points_to, revision, updated_at in session.execute(query)
        if points_to
    ]
