"""Takes versions through their states, and out of service: retire, delete, collect."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session
from tunedock_api.errors import Conflict

from ..clock import Clock
from ..db import Database
from ..ids import new_id
from ..records import Target, VersionRecord, VersionState
from ..tables.adapters import AdapterRow, AliasRow, VersionRow
from ..tables.base import bump
from ..webhook_events import announce_verdict
from .aliases import plan_move
from .folders import Folders
from .holds import Holds
from .publishing import Publishing
from .rows import (
    aliases_using,
    find_adapter,
    find_alias,
    find_version,
    load_manifest,
    move_of,
    version_record,
    versions_query,
)
from .versions import LIVE, SERVED, WAITING, changes


class Lifecycle(Publishing):
    def __init__(self, db: Database, folders: Folders, clock: Clock) -> None:
        super().__init__(db, folders, clock)
        self._holds = Holds(db, new_id("server-"))

    def set_state(
        self,
        version_id: int,
        to: VersionState,
        reason: str | None = None,
        parity: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        *,
        first_alias: str | None = None,
        actor: str = "",
    ) -> VersionRecord:
        """The gate's verdict. Saying it again changes nothing. `metrics` are added to those that are there.

        A numbered version that becomes ready gets the alias `first_alias` when the adapter has none of that name, in
        the same transaction: nobody sees a first version that is ready but not live, however the server ends.

        Raises NotFound; Conflict: `invalid_state` for a step that does not exist, `version_in_use` for leaving `ready`
        while an alias points there.
        """
        with self._db.write() as session:
            row, adapter = find_version(session, version_id)
            record = _full(row, adapter)
            if not changes(record.ref, record.state, to):
                return record
            if record.state == "ready":
                _check_unused(session, row, record.ref)
            self._enter(row, to, reason)
            row.parity = row.parity if parity is None else parity
            row.metrics = {**row.metrics, **(metrics or {})}
            if to == "ready" and first_alias is not None and row.number is not None:
                self._promote_first(session, adapter, first_alias, row.number, actor)
            if record.state in WAITING and record.number is not None and record.job_id is not None:
                announce_verdict(session, record.project, record.job_id, to, self._clock.now())
            bump(session)
            return _full(row, adapter)

    def add_metrics(self, version_id: int, metrics: dict[str, Any]) -> VersionRecord:
        """Adds what was measured later to the version's metrics. Raises NotFound."""
        with self._db.write() as session:
            row, adapter = find_version(session, version_id)
            row.metrics = {**row.metrics, **metrics}
            bump(session)
            return _full(row, adapter)

    def unevaluated(self, since: int) -> list[int]:
        """Ids of ready versions that jobs made after `since` and that have no evaluation yet, oldest first."""
        query = select(VersionRow.seq, VersionRow.metrics).where(
            VersionRow.state == "ready", VersionRow.origin == "trained", VersionRow.created_at > since
        )
        with self._db.read() as session:
            rows = session.execute(query.order_by(VersionRow.seq)).tuples().all()
        return [seq for seq, metrics in rows if "evaluation" not in metrics]

    def _promote_first(self, session: Session, adapter: AdapterRow, alias: str, number: int, actor: str) -> None:
        row = find_alias(session, adapter, alias)
        current = move_of(row)
        if current.targets:
            return
        move = plan_move(f"{adapter.name}@{alias}", current, (Target(number),), None)
        if move is not None:
            self._apply(session, adapter, alias, row, move, actor, "first ready version")

    def set_pin(self, version_id: int, pinned: bool) -> VersionRecord:
        """Whether servers keep the version in a slot. Raises NotFound; Conflict (`version_not_ready`)."""
        with self._db.write() as session:
            row, adapter = find_version(session, version_id)
            record = _full(row, adapter)
            if pinned and record.state != "ready":
                raise Conflict(
                    f"{record.ref} is {record.state}: only a ready version can be pinned.", "version_not_ready"
                )
            if row.pinned != pinned:
                row.pinned = pinned
                bump(session)
            return _full(row, adapter)

    def retire(self, version_id: int, reason: str = "") -> VersionRecord:
        """Stops offering a version: no new requests from the next snapshot on. Its files go with `collect`.

        Raises NotFound; Conflict: `version_in_use` while an alias points to it.
        """
        with self._db.write() as session:
            row, adapter = find_version(session, version_id)
            record = _full(row, adapter)
            if record.state == "retired" or not changes(record.ref, record.state, "retiring"):
                return record
            _check_unused(session, row, record.ref)
            self._enter(row, "retiring", reason or None)
            bump(session)
            return _full(row, adapter)

    def delete_adapter(self, project: str, name: str, actor: str = "", reason: str = "") -> None:
        """Deletes all aliases and retires all versions. The name may be used again; its numbers go on. Raises NotFound."""
        with self._db.write() as session:
            adapter = find_adapter(session, project, name)
            for alias in session.scalars(select(AliasRow).where(AliasRow.adapter_seq == adapter.seq)).all():
                move = plan_move(f"{name}@{alias.alias}", move_of(alias), (), None)
                if move is not None:
                    self._apply(session, adapter, alias.alias, alias, move, actor, reason)
            live = (VersionRow.adapter_seq == adapter.seq, VersionRow.state.in_(LIVE))
            now = self._clock.now()
            session.execute(update(VersionRow).where(*live).values(state="retiring", state_at=now, pinned=False))
            adapter.deleted_at = now
            bump(session)

    def retiring(self) -> Sequence[VersionRecord]:
        """Versions that wait for their last lease and the grace time."""
        return self.in_state("retiring")

    def hold(self, digests: Set[str]) -> None:
        """Tells the collectors of other servers what this one still uses of versions that are offered no more.

        Repeat it every HEARTBEAT_S while there is something; a server that stops holds nothing after LEASE_S.
        """
        self._holds.say(digests)

    def collect(self, in_use: Set[str] = frozenset(), grace_s: float = 300.0) -> Sequence[VersionRecord]:
        """Removes the files of versions that have been retiring or rejected for `grace_s`, and what crashes have left.

        `in_use` are the digests that this server has leased or loaded. What other servers `hold` stays, too; `grace_s`
        is the time that they have to notice a retirement. Returns the versions that are `retired` now.
        """
        deadline = self._clock.now() - grace_s
        kept = in_use | self._holds.of_others(self._clock.monotonic())
        retired = [self._retire_one(version_id, deadline) for version_id in self._due(kept, deadline)]
        for digest in self._unneeded(kept, grace_s, deadline):
            with self._db.write() as session:
                self._remove_unless_needed(session, digest, deadline)
        self._folders.sweep(grace_s)
        return [record for record in retired if record is not None]

    def _due(self, kept: Set[str], deadline: float) -> Sequence[int]:
        with self._db.read() as session:
            query = select(VersionRow.seq, VersionRow.digest).where(
                VersionRow.state == "retiring", VersionRow.state_at <= deadline
            )
            return [version_id for version_id, digest in session.execute(query) if digest not in kept]

    def _unneeded(self, kept: Set[str], grace_s: float, deadline: float) -> Sequence[str]:
        """Folders of rejected versions and of no version at all, to be looked at again under the lock."""
        there = {digest: age_s for digest, age_s in self._folders.stored() if digest not in kept}
        with self._db.read() as session:
            needed = set(session.scalars(select(VersionRow.digest).where(_needs_files(deadline))))
            rejected = set(session.scalars(select(VersionRow.digest).where(VersionRow.state == "rejected")))
        return [
            digest
            for digest, age_s in there.items()
            if digest not in needed and (digest in rejected or age_s >= grace_s)
        ]

    def _retire_one(self, version_id: int, deadline: float) -> VersionRecord | None:
        with self._db.write() as session:
            row, adapter = session.execute(versions_query().where(VersionRow.seq == version_id)).one()
            if row.state != "retiring":
                return None
            self._enter(row, "retired", row.reason)
            session.flush()
            self._remove_unless_needed(session, row.digest, deadline)
            bump(session)
            return version_record(row, adapter, load_manifest(row, probe=False))

    def _remove_unless_needed(self, session: Session, digest: str, deadline: float) -> None:
        """Inside the write transaction: nobody can publish the same bytes meanwhile. Removing is one rename."""
        query = select(VersionRow.seq).where(VersionRow.digest == digest, _needs_files(deadline)).limit(1)
        if session.scalar(query) is None:
            self._folders.remove(digest)

    def _enter(self, row: VersionRow, state: VersionState, reason: str | None) -> None:
        row.state, row.state_at, row.reason = state, self._clock.now(), reason
        if state != "ready":
            row.pinned = False


def _needs_files(deadline: float) -> ColumnElement[bool]:
    """A version that may be served, or one that was rejected after `deadline`."""
    looked_at = and_(VersionRow.state == "rejected", VersionRow.state_at > deadline)
    return or_(VersionRow.state.in_(SERVED), looked_at)


def _full(row: VersionRow, adapter: AdapterRow) -> VersionRecord:
    return version_record(row, adapter, load_manifest(row, probe=True))


def _check_unused(session: Session, row: VersionRow, ref: str) -> None:
    aliases = aliases_using(session, row)
    if aliases:
        raise Conflict(
            f"{ref} is the target of alias {', '.join(aliases)}: move or delete the alias first.",
            "version_in_use",
            details={"aliases": aliases},
        )
