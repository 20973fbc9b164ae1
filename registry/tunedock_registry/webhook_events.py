"""What endpoints are told, written in the transaction in which it happens (an outbox: nothing is lost, nothing early)."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from .ids import new_id
from .records import VersionState
from .tables.webhooks import DeliveryRow, EndpointRow, WebhookEventRow

EVENT_TYPES = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")


def announce_verdict(session: Session, project: str, job_id: str, state: VersionState, now: int) -> None:
    """What the gate said of a job's version decides how the job ended, as its caller sees it."""
    if state == "ready":
        announce(session, project, "fine_tuning.job.succeeded", job_id, now)
    if state == "rejected":
        announce(session, project, "fine_tuning.job.failed", job_id, now)


def announce(session: Session, project: str, type: str, object_id: str, now: int) -> None:
    """`type` happened to `object_id`: queues a delivery to every endpoint that wants it. A second time does nothing."""
    seen = select(WebhookEventRow.seq).where(WebhookEventRow.type == type, WebhookEventRow.object_id == object_id)
    if session.scalar(seen) is not None:
        return
    endpoints = session.scalars(select(EndpointRow).where(EndpointRow.project == project))
    wanted = [endpoint for endpoint in endpoints if type in endpoint.event_types]
    event = WebhookEventRow(id=new_id("evt_"), project=project, type=type, object_id=object_id, created_at=now)
    session.add(event)
    session.flush()
    for endpoint in wanted:
        session.add(DeliveryRow(event_id=event.id, endpoint_id=endpoint.id, status="pending", attempts=0, next_at=now))
