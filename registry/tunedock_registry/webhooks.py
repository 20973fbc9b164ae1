"""Webhook endpoints and the deliveries that wait to be sent. Sending itself is the server's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput, NotFound

from . import signing
from .clock import Clock
from .db import Database
from .ids import new_id
from .paging import page
from .records import Page
from .rows import to_record
from .tables.webhooks import DeliveryRow, EndpointRow, WebhookEventRow
from .webhook_events import EVENT_TYPES

OLD_SECRET_S = 24 * 3600
# A sender that has taken a delivery and says nothing for so long has died; another may send it again.
SENDING_S = 60
# After the n-th failure. Standard Webhooks' schedule: about 28 hours, 8 tries.
RETRY_DELAYS_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 36_000)
MAX_URL_CHARS = 2_000
GONE = 410


@dataclass(frozen=True)
class EndpointRecord:
    id: str
    project: str
    name: str
    url: str
    event_types: tuple[str, ...]
    signing_secret_hint: str
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class NewSecret:
    """The only time that `secret` is seen."""

    endpoint: EndpointRecord
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Delivery:
    """POST `body` to `url` with `headers`, exactly these bytes. `id` None: a test, nothing to report."""

    id: int | None
    endpoint_id: str
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes


class Webhooks:
    """Endpoints of all projects. Another project's endpoint is as absent as one that never was."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def create(self, project: str, name: str, url: str, event_types: Sequence[str]) -> NewSecret:
        """Raises BadInput for a URL that is not plain http(s), or an unknown event type."""
        _check(url, event_types)
        now, secret = self._clock.now(), signing.new_secret()
        row = EndpointRow(
            id=new_id("we_"),
            project=project,
            name=name,
            url=url,
            event_types=list(event_types),
            secret=secret,
            created_at=now,
            updated_at=now,
        )
        with self._db.write() as session:
            session.add(row)
        return NewSecret(_record(row), secret)

    def get(self, project: str, endpoint_id: str) -> EndpointRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return _record(_require(session, project, endpoint_id))

    def list(self, project: str, after: str | None = None, limit: int = 20) -> Page[EndpointRecord]:
        """Newest first. Raises BadInput for an unknown `after`."""
        with self._db.read() as session:
            return page(session, EndpointRow, [EndpointRow.project == project], _record, after=after, limit=limit)

    def update(
        self,
        project: str,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
    ) -> EndpointRecord:
        """Changes what is given; `event_types` is the whole new list. Raises NotFound, BadInput as `create`."""
        _check(url, event_types or ())
        with self._db.write() as session:
            row = _require(session, project, endpoint_id)
            row.name = row.name if name is None else name
            row.url = row.url if url is None else url
            row.event_types = row.event_types if event_types is None else list(event_types)
            row.updated_at = self._clock.now()
            return _record(row)

    def delete(self, project: str, endpoint_id: str) -> None:
        """With all deliveries that still wait. Raises NotFound."""
        with self._db.write() as session:
            session.delete(_require(session, project, endpoint_id))

    def rotate_secret(self, project: str, endpoint_id: str, *, keep_old: bool = False) -> NewSecret:
        """A new secret; with `keep_old` deliveries are signed with both for a day. Raises NotFound."""
        now, secret = self._clock.now(), signing.new_secret()
        with self._db.write() as session:
            row = _require(session, project, endpoint_id)
            row.old_secret = row.secret if keep_old else None
            row.old_secret_until = now + OLD_SECRET_S if keep_old else None
            row.secret, row.updated_at = secret, now
            return NewSecret(_record(row), secret)

    def test(self, project: str, endpoint_id: str, event_type: str) -> Delivery:
        """A signed example of `event_type`, to send at once. Raises NotFound, BadInput."""
        _check(None, [event_type])
        now = self._clock.now()
        with self._db.read() as session:
            row = _require(session, project, endpoint_id)
        event = WebhookEventRow(id=new_id("evt_"), type=event_type, object_id="ftjob-test", created_at=now)
        return _signed(None, row, event, now)

    def take_due(self, limit: int = 20) -> Sequence[Delivery]:
        """Deliveries to send now. Each is one sender's for a minute: `report` in time, or it is sent again."""
        now = self._clock.now()
        due = (
            select(DeliveryRow, EndpointRow, WebhookEventRow)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .join(WebhookEventRow, WebhookEventRow.id == DeliveryRow.event_id)
            .where(DeliveryRow.status == "pending", DeliveryRow.next_at <= now)
            .order_by(DeliveryRow.seq)
            .limit(limit)
        )
        with self._db.read() as session:
            if session.execute(due).first() is None:
                return []
        with self._db.write() as session:
            taken = []
            for delivery, endpoint, event in session.execute(due).all():
                delivery.next_at = now + SENDING_S
                taken.append(_signed(delivery.seq, endpoint, event, now))
            return taken

    def report(self, delivery: Delivery, status_code: int | None) -> None:
        """What came of it; None when there was no answer. Anything but 2xx is tried again later, 410 is not."""
        with self._db.write() as session:
            row = None if delivery.id is None else session.get(DeliveryRow, delivery.id)
            if row is None or row.status != "pending":
                return
            row.attempts, row.status_code = row.attempts + 1, status_code
            if status_code is not None and 200 <= status_code < 300:
                row.status = "delivered"
            elif status_code == GONE or row.attempts > len(RETRY_DELAYS_S):
                row.status = "failed"
            else:
                row.next_at = self._clock.now() + RETRY_DELAYS_S[row.attempts - 1]


def _signed(delivery_id: int | None, endpoint: EndpointRow, event: WebhookEventRow, now: int) -> Delivery:
    value = {
        "id": event.id,
        "object": "event",
        "created_at": event.created_at,
        "type": event.type,
        "data": {"id": event.object_id},
    }
    body = json.dumps(value, separators=(",", ":")).encode()
    old = endpoint.old_secret if (endpoint.old_secret_until or 0) > now else None
    keys = [endpoint.secret, *([old] if old else [])]
    return Delivery(delivery_id, endpoint.id, endpoint.url, signing.headers(keys, event.id, now, body), body)


def _check(url: str | None, event_types: Sequence[str]) -> None:
    if url is not None and not _is_plain_url(url):
        raise BadInput("url must be a plain http:// or https:// address of a host.", param="url")
    for event_type in event_types:
        if event_type not in EVENT_TYPES:
            known = ", ".join(EVENT_TYPES)
            raise BadInput(f"Unknown event type {event_type[:80]!r}: use {known}.", param="event_types")


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return False
    fine = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and not parts.fragment
    return bool(fine) and port_is_fine and len(url) <= MAX_URL_CHARS and url.isprintable() and " " not in url


def _require(session: Session, project: str, endpoint_id: str) -> EndpointRow:
    row = session.scalar(select(EndpointRow).where(EndpointRow.project == project, EndpointRow.id == endpoint_id))
    if row is None:
        raise NotFound(f"No such webhook endpoint: {endpoint_id[:80]}", param="id")
    return row


def _record(row: EndpointRow) -> EndpointRecord:
    hint = signing.hint(row.secret)
    return to_record(EndpointRecord, row, event_types=tuple(row.event_types), signing_secret_hint=hint)
