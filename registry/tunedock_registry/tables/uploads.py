"""Uploads in parts."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class UploadRow(Sequenced, Base):
    """`part_ids` are those that `complete` was called with."""

    __tablename__ = "uploads"

    project: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str]
    size_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    expires_after_s: Mapped[int | None]
    file_id: Mapped[str | None] = mapped_column(String(64))
    part_ids: Mapped[list[Any] | None]
    created_at: Mapped[int]
    expires_at: Mapped[int] = mapped_column(index=True)


class PartRow(Sequenced, Base):
    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    created_at: Mapped[int]
