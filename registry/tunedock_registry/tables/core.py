"""Files, the blobs they consist of, and which create calls have been seen."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class BlobRow(Base):
    """Bytes in the blob store. The row is written before the bytes, so the collector knows every blob there is.

    `touched_at` is when somebody last stored these bytes: younger blobs are never collected.
    """

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int]
    touched_at: Mapped[int]


class FileRow(Sequenced, Base):
    __tablename__ = "files"
    __table_args__ = (Index("ix_files_project", "project", "seq"), {"sqlite_autoincrement": True})

    project: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None]
    report: Mapped[dict[str, Any] | None]
    created_at: Mapped[int]
    expires_at: Mapped[int | None] = mapped_column(index=True)


class IdempotencyRow(Base):
    """The primary key is what makes a repeated create return the first result, also when both run at once."""

    __tablename__ = "idempotency"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    key: Mapped[str] = mapped_column(String(300), primary_key=True)
    object_id: Mapped[str] = mapped_column(String(64))
    body_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(index=True)
