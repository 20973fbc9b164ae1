"""Who may do what: API keys, and checkpoints that a project lends to others."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class KeyRow(Sequenced, Base):
    """The key itself is nowhere: `sha256` recognises it, `prefix` lets people tell keys apart."""

    __tablename__ = "api_keys"

    project: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    limits: Mapped[dict[str, Any]]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class PermissionRow(Sequenced, Base):
    """`project_id` may use the checkpoint (its public reference) of `project`."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (
        UniqueConstraint("project", "checkpoint", "project_id"),
        Index("ix_checkpoint_permissions_project_id", "project_id"),
        {"sqlite_autoincrement": True},
    )

    project: Mapped[str] = mapped_column(String(64))
    checkpoint: Mapped[str] = mapped_column(String(200))
    version_id: Mapped[int]
    project_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int]
