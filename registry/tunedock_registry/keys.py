"""API keys: 256 random bits, shown once. What is stored recognises a key and cannot be turned back into it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput, NotFound, Unauthenticated
from tunedock_api.names import check_name

from .clock import Clock
from .db import Database
from .ids import new_id
from .paging import page
from .records import Page
from .rows import to_record
from .tables.access import KeyRow
from .tables.base import bump

PREFIX = "td-"
MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class KeyRecord:
    """`scopes` name the policies of routes, `limits` are `rpm`, `tpm` and `concurrency` (absent = unlimited).

    `prefix` is the beginning of the key, for people to recognise it by.
    """

    id: str
    project: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    limits: Mapping[str, int]
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    def valid_at(self, now: int) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class NewKey:
    """The only time that `secret` is seen."""

    record: KeyRecord
    secret: str = field(repr=False)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Keys:
    """Keys of all projects. A change moves the change counter, so that every server notices at once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def create(
        self,
        project: str,
        name: str,
        scopes: Sequence[str],
        *,
        expires_after_s: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> NewKey:
        """Raises BadInput for an illegal project, an overlong name or a key that may do nothing."""
        check_name(project, "project")
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            raise BadInput(f"name must have 1 to {MAX_NAME_CHARS} characters.", param="name")
        if not scopes:
            raise BadInput("A key needs at least one scope.", param="scopes")
        secret, now = PREFIX + secrets.token_urlsafe(32), self._clock.now()
        row = KeyRow(
            id=new_id("key_"),
            project=project,
            name=name,
            prefix=secret[: len(PREFIX) + 6],
            sha256=digest(secret),
            scopes=sorted(set(scopes)),
            limits=dict(limits or {}),
            created_at=now,
            expires_at=None if expires_after_s is None else now + expires_after_s,
        )
        with self._db.write() as session:
            session.add(row)
            bump(session)
        return NewKey(_record(row), secret)

    def verify(self, secret: str) -> KeyRecord:
        """Raises Unauthenticated, with one text for a wrong, an expired and a revoked key.

        The look-up is by digest: what it takes the database to find nothing tells nothing about any key.
        """
        with self._db.read() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.sha256 == digest(secret)))
        if row is None or not _record(row).valid_at(self._clock.now()):
            raise Unauthenticated("Incorrect API key provided.")
        return _record(row)

    def valid_in(self, session: Session) -> dict[str, KeyRecord]:
        """All keys that may be used at present, by `digest`."""
        return {row.sha256: _record(row) for row in session.scalars(select(KeyRow).where(self._valid()))}

    def list(self, project: str, after: str | None = None, limit: int = 100) -> Page[KeyRecord]:
        """Newest first, revoked ones too. Raises BadInput for an unknown `after`."""
        with self._db.read() as session:
            return page(session, KeyRow, [KeyRow.project == project], _record, after=after, limit=limit)

    def revoke(self, project: str, key_id: str) -> KeyRecord:
        """From the next look on, everywhere. Revoking again is fine. Raises NotFound."""
        with self._db.write() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.project == project, KeyRow.id == key_id))
            if row is None:
                raise NotFound(f"No such key: {key_id[:80]}", param="id")
            row.revoked_at = row.revoked_at or self._clock.now()
            bump(session)
            return _record(row)

    def _valid(self) -> ColumnElement[bool]:
        alive = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > self._clock.now())
        return and_(KeyRow.revoked_at.is_(None), alive)


def _record(row: Any) -> KeyRecord:
    return to_record(KeyRecord, row, scopes=tuple(row.scopes))
