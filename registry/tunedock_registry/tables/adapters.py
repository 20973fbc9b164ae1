"""Adapters, their versions, their aliases and every move of an alias; and what servers still use."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class AdapterRow(Base):
    """`latest` only rises, also when the adapter is deleted and its name used again: `support@7` never means two things."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("project", "name"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(64))
    base_model: Mapped[str]
    latest: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]


class VersionRow(Base):
    """`number` or `tag` (a checkpoint) is set. `manifest` is JSON text without the probe, which is large and rarely read.

    `state_at` is when `state` was entered: files are collected a grace time after `retiring`.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_seq", "number"),
        UniqueConstraint("adapter_seq", "tag"),
        Index("ix_versions_state", "state", "seq"),
        # A job publishes its result once, however often it is retried.
        Index(
            "uq_versions_job_result",
            "job_id",
            unique=True,
            sqlite_where=text("number IS NOT NULL"),
            postgresql_where=text("number IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    adapter_seq: Mapped[int] = mapped_column(ForeignKey("adapters.seq"))
    number: Mapped[int | None]
    tag: Mapped[str | None] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16))
    state_at: Mapped[int]
    reason: Mapped[str | None]
    origin: Mapped[str] = mapped_column(String(16))
    base_model: Mapped[str]
    rank: Mapped[int]
    size_bytes: Mapped[int]
    manifest: Mapped[str] = mapped_column(Text)
    probe: Mapped[str | None] = mapped_column(Text, deferred=True)
    parity: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    pinned: Mapped[bool] = mapped_column(default=False)
    job_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int]


class AliasRow(Base):
    """The newest move of an alias. Without targets the alias is deleted; its revisions go on when it comes back."""

    __tablename__ = "aliases"

    adapter_seq: Mapped[int] = mapped_column(ForeignKey("adapters.seq"), primary_key=True, autoincrement=False)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    targets: Mapped[list[Any]]
    revision: Mapped[int]
    undo: Mapped[int | None]
    updated_at: Mapped[int]


class AliasMoveRow(Sequenced, Base):
    """Append-only. `before` and `after` are lists of `[version, weight]`; `undo` is the revision a rollback returns to."""

    __tablename__ = "alias_moves"
    __table_args__ = (UniqueConstraint("adapter_seq", "alias", "revision"), {"sqlite_autoincrement": True})

    adapter_seq: Mapped[int] = mapped_column(ForeignKey("adapters.seq"))
    alias: Mapped[str] = mapped_column(String(64))
    before: Mapped[list[Any] | None]
    after: Mapped[list[Any]]
    revision: Mapped[int]
    undo: Mapped[int | None]
    actor: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[int]


class HoldRow(Base):
    """A server, `holder`, still uses files that would be collected otherwise. `beat` rises while it lives."""

    __tablename__ = "holds"

    holder: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    beat: Mapped[int]
