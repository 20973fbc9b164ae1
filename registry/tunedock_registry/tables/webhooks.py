"""Webhook endpoints, the events they are told, and each delivery."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class EndpointRow(Sequenced, Base):
    """Secrets are kept as they are, since every delivery is signed with them; the database is its owner's alone."""

    __tablename__ = "webhook_endpoints"

    project: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[Any]]
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[int | None]
    created_at: Mapped[int]
    updated_at: Mapped[int]


class WebhookEventRow(Sequenced, Base):
    """The constraint makes an event happen once, however often it is announced."""

    __tablename__ = "webhook_events"
    __table_args__ = (UniqueConstraint("type", "object_id"), {"sqlite_autoincrement": True})

    project: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int]


class DeliveryRow(Base):
    """`next_at` is when to try next; while a sender is trying, it is when another one may take over."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("event_id", "endpoint_id"),
        Index("ix_webhook_deliveries_due", "status", "next_at"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    event_id: Mapped[str] = mapped_column(ForeignKey("webhook_events.id", ondelete="CASCADE"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True)
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[int]
    status_code: Mapped[int | None]
