"""Moves aliases: promote, roll back, delete. Each is one transaction with its history entry."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session
from tunedock_api.errors import NotFound
from tunedock_api.names import check_alias

from ..ids import new_id
from ..records import AliasRecord, Target, VersionState
from ..tables.adapters import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from ..tables.base import bump
from .aliases import Move, check_ready, check_targets, plan_move, plan_rollback
from .reading import Reading
from .rows import alias_record, find_adapter, find_alias, move_of, target_list
from .rows import targets as parse_targets


class Moving(Reading):
    """Aliases point to `ready` versions only, and every move is on record."""

    def set_alias(
        self,
        project: str,
        name: str,
        alias: str,
        targets: Sequence[Target],
        expected_revision: int | None = None,
        actor: str = "",
        reason: str = "",
    ) -> AliasRecord:
        """Compare-and-swap; `expected_revision` None does not compare, 0 means that the alias must be new.

        Raises NotFound; BadInput; Conflict: `alias_conflict` (details: the current state), `version_not_ready`.
        """
        check_alias(alias)
        wanted = check_targets(targets)
        with self._db.write() as session:
            adapter = find_adapter(session, project, name)
            row = find_alias(session, adapter, alias)
            move = plan_move(f"{name}@{alias}", move_of(row), wanted, expected_revision)
            if row is not None and move is None:
                return alias_record(row, adapter)
            check_ready(name, wanted, _states(session, adapter, wanted))
            return self._apply(session, adapter, alias, row, move or Move(wanted, 1, None), actor, reason)

    def rollback(self, project: str, name: str, alias: str, actor: str = "", reason: str = "") -> AliasRecord:
        """Back to the previous target; again goes back one further.

        Raises NotFound; BadInput (`invalid_state`) when there is no earlier target; Conflict (`version_not_ready`).
        """
        with self._db.write() as session:
            adapter = find_adapter(session, project, name)
            row = find_alias(session, adapter, alias)
            if row is None:
                raise NotFound(f"No alias {alias[:80]!r} of adapter {name!r}.", param="alias")
            move = plan_rollback(f"{name}@{alias}", move_of(row), _undo_of(session, row))
            check_ready(name, move.targets, _states(session, adapter, move.targets))
            return self._apply(session, adapter, alias, row, move, actor, reason)

    def delete_alias(
        self,
        project: str,
        name: str,
        alias: str,
        expected_revision: int | None = None,
        actor: str = "",
        reason: str = "",
    ) -> None:
        """Fine when it is gone already. Raises NotFound for the adapter, Conflict (`alias_conflict`)."""
        with self._db.write() as session:
            adapter = find_adapter(session, project, name)
            row = find_alias(session, adapter, alias)
            move = plan_move(f"{name}@{alias}", move_of(row), (), expected_revision)
            if move is not None:
                self._apply(session, adapter, alias, row, move, actor, reason)

    def _apply(
        self,
        session: Session,
        adapter: AdapterRow,
        alias: str,
        row: AliasRow | None,
        move: Move,
        actor: str,
        reason: str,
    ) -> AliasRecord:
        now = self._clock.now()
        before = None if row is None else row.targets
        after = target_list(move.targets)
        if row is None:
            row = AliasRow(adapter_seq=adapter.seq, alias=alias)
            session.add(row)
        row.targets, row.revision, row.undo, row.updated_at = after, move.revision, move.undo, now
        session.add(
            AliasMoveRow(
                id=new_id("move-"),
                adapter_seq=adapter.seq,
                alias=alias,
                before=before or None,
                after=after,
                revision=move.revision,
                undo=move.undo,
                actor=actor,
                reason=reason,
                created_at=now,
            )
        )
        bump(session)
        return alias_record(row, adapter)


def _states(session: Session, adapter: AdapterRow, targets: Sequence[Target]) -> dict[int, VersionState]:
    numbers = [target.version for target in targets]
    query = select(VersionRow.number, VersionRow.state).where(
        VersionRow.adapter_seq == adapter.seq, VersionRow.number.in_(numbers)
    )
    return dict(session.execute(query).tuples().all())  # type: ignore[arg-type]


def _undo_of(session: Session, row: AliasRow) -> dict[int, Move]:
    """The move that a rollback returns to, by its revision."""
    query = select(AliasMoveRow).where(
        AliasMoveRow.adapter_seq == row.adapter_seq,
        AliasMoveRow.alias == row.alias,
        AliasMoveRow.revision == row.undo,
    )
    return {move.revision: Move(parse_targets(move.after), move.revision, move.undo) for move in session.scalars(query)}
