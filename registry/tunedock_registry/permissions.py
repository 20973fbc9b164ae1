"""Checkpoints that a project lets other projects use as models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from tunedock_api.errors import NotFound
from tunedock_api.names import check_name

from .clock import Clock
from .db import Database
from .ids import new_id
from .paging import page
from .records import Order, Page
from .rows import to_record
from .tables.access import PermissionRow
from .tables.base import bump
from .tables.jobs import CheckpointRow, JobRow


@dataclass(frozen=True)
class PermissionRecord:
    """`project_id` may use `checkpoint` (a public reference of `project`), which is version `version_id`."""

    id: str
    project: str
    checkpoint: str
    version_id: int
    project_id: str
    created_at: int


class Permissions:
    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def create(self, project: str, checkpoint: str, project_ids: Sequence[str]) -> Sequence[PermissionRecord]:
        """Lends `checkpoint`, which a job of `project` made. What is lent already stays as it is.

        Raises NotFound for an unknown checkpoint, BadInput for an illegal project.
        """
        for project_id in project_ids:
            check_name(project_id, "project", "project_ids")
        with self._db.write() as session:
            version_id = _version(session, project, checkpoint)
            made = [self._lend(session, project, checkpoint, version_id, to) for to in dict.fromkeys(project_ids)]
            bump(session)
            return [to_record(PermissionRecord, row) for row in made]

    def _lend(self, session: Session, project: str, checkpoint: str, version_id: int, to: str) -> PermissionRow:
        row = session.scalar(select(PermissionRow).where(*_of(project, checkpoint), PermissionRow.project_id == to))
        if row is None:
            row = PermissionRow(
                id=new_id("cp_"),
                project=project,
                checkpoint=checkpoint,
                version_id=version_id,
                project_id=to,
                created_at=self._clock.now(),
            )
            session.add(row)
        return row

    def list(
        self,
        project: str,
        checkpoint: str,
        after: str | None = None,
        limit: int = 10,
        order: Order = "desc",
        project_id: str | None = None,
    ) -> Page[PermissionRecord]:
        """Raises NotFound for an unknown checkpoint, BadInput for an unknown `after`."""
        scope = _of(project, checkpoint)
        if project_id is not None:
            scope.append(PermissionRow.project_id == project_id)
        with self._db.read() as session:
            _version(session, project, checkpoint)
            return page(session, PermissionRow, scope, _record, after=after, limit=limit, order=order)

    def delete(self, project: str, checkpoint: str, permission_id: str) -> None:
        """Raises NotFound."""
        with self._db.write() as session:
            query = select(PermissionRow).where(*_of(project, checkpoint), PermissionRow.id == permission_id)
            row = session.scalar(query)
            if row is None:
                raise NotFound(f"No such checkpoint permission: {permission_id[:80]}", param="permission_id")
            session.delete(row)
            bump(session)

    def lent_in(self, session: Session) -> dict[tuple[str, str], int]:
        """(project, public reference) → version id of every checkpoint that another project lets that one use."""
        query = select(PermissionRow.project_id, PermissionRow.checkpoint, PermissionRow.version_id)
        return {(project, ref): version_id for project, ref, version_id in session.execute(query)}


def _of(project: str, checkpoint: str) -> list[ColumnElement[bool]]:
    return [PermissionRow.project == project, PermissionRow.checkpoint == checkpoint]


def _version(session: Session, project: str, checkpoint: str) -> int:
    """The version that a checkpoint or a finished job of `project` is known by."""
    of_step = (
        select(CheckpointRow.version_id)
        .join(JobRow, JobRow.id == CheckpointRow.job_id)
        .where(JobRow.project == project, CheckpointRow.fine_tuned_model == checkpoint)
    )
    of_job = select(JobRow.version_id).where(JobRow.project == project, JobRow.fine_tuned_model == checkpoint)
    version_id = session.scalar(of_step) or session.scalar(of_job)
    if version_id is None:
        raise NotFound(f"No such checkpoint: {checkpoint[:200]}", param="fine_tuned_model_checkpoint")
    return version_id


def _record(row: PermissionRow) -> PermissionRecord:
    return to_record(PermissionRecord, row)
