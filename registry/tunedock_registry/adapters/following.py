"""Keeps a snapshot up to date: after a change only what is new is read, however many versions there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from sqlalchemy import select
from sqlalchemy.orm import Session
from tunedock_api.manifest import ServingProfile

from ..records import AliasRecord, ReadyVersion
from ..tables.adapters import AdapterRow, AliasRow, VersionRow
from ..tables.base import change_counter
from .rows import targets
from .snapshot import Snapshot, build

_ID_CHUNK = 16  # manifests have some ten kilobytes each, and the heap keeps the size it once had

_COLUMNS = select(
    VersionRow.seq, AdapterRow.project, AdapterRow.name, VersionRow.number, VersionRow.tag, VersionRow.digest,
    VersionRow.base_model, VersionRow.rank, VersionRow.manifest, VersionRow.pinned, VersionRow.created_at,
).join(AdapterRow, AdapterRow.seq == VersionRow.adapter_seq)  # fmt: skip


class Follower:
    """What a version is does not change while it is `ready`, but for its pin; so its record is kept and reused."""

    def __init__(self) -> None:
        self._latest: Snapshot | None = None
        self._ready: dict[int, ReadyVersion] = {}
        self._profiles: WeakValueDictionary[str, ServingProfile] = WeakValueDictionary()

    def snapshot(self, session: Session) -> Snapshot:
        """As of `session`; the same object while the change counter stands still."""
        counter = change_counter(session)
        known = self._latest
        if known is None or known.counter != counter:
            self._ready = self._read_ready(session)
            known = self._latest = build(counter, self._ready.values(), _read_aliases(session))
        return known

    def _read_ready(self, session: Session) -> dict[int, ReadyVersion]:
        query = select(VersionRow.seq, VersionRow.pinned).where(VersionRow.state == "ready").order_by(VersionRow.seq)
        pins = dict(session.execute(query).tuples().all())
        new = self._load(session, [version_id for version_id in pins if version_id not in self._ready])
        records = {**self._ready, **new}
        return {version_id: _with_pin(records[version_id], pinned) for version_id, pinned in pins.items()}

    def _load(self, session: Session, ids: Sequence[int]) -> dict[int, ReadyVersion]:
        found: dict[int, ReadyVersion] = {}
        for begin in range(0, len(ids), _ID_CHUNK):
            chosen = _COLUMNS.where(VersionRow.seq.in_(ids[begin : begin + _ID_CHUNK]))
            for seq, project, name, number, tag, digest, base, rank, manifest, pinned, made in session.execute(chosen):
                project, base, profile = sys.intern(project), sys.intern(base), self._profile(manifest)
                found[seq] = ReadyVersion(
                    seq, project, name, number, tag, digest, base, rank, profile, pinned, made
                )  # fmt: skip
        return found

    def _profile(self, manifest: str) -> ServingProfile:
        """One object for all versions with the same profile, which most have."""
        text = json.dumps(json.loads(manifest)["identity"]["serving"], sort_keys=True)
        known = self._profiles.get(text)
        if known is None:
            known = self._profiles[text] = ServingProfile.model_validate_json(text)
        return known


def _with_pin(record: ReadyVersion, pinned: bool) -> ReadyVersion:
    return record if record.pinned == pinned else replace(record, pinned=pinned)


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
