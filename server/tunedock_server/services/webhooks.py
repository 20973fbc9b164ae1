"""Webhooks: endpoints, and the sender that delivers what the registry has queued."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
from tunedock_registry.records import Page
from tunedock_registry.registry import Registry
from tunedock_registry.webhooks import Delivery, EndpointRecord, NewSecret

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 10.0
IDLE_S = 1.0
CONCURRENT = 8


class WebhookSender:
    """Sends due deliveries. Never follows a redirect; without `allow_private` never calls an address that is not public.

    The address is resolved once, checked, and then called by number, so that a name cannot change in between.
    """

    def __init__(self, registry: Registry, allow_private: bool) -> None:
        self._webhooks = registry.webhooks
        self._allow_private = allow_private

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=SEND_TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            while True:
                try:
                    sent = await self._send_due(client)
                except Exception:
                    log.exception("webhooks could not be sent; trying again")
                    sent = 0
                if not sent:
                    await asyncio.sleep(IDLE_S)

    async def _send_due(self, client: httpx2.AsyncClient) -> int:
        due = await asyncio.to_thread(self._webhooks.take_due, CONCURRENT)
        for delivery, status in zip(due, await self._send_all(client, due), strict=True):
            await asyncio.to_thread(self._webhooks.report, delivery, status)
        return len(due)

    async def _send_all(self, client: httpx2.AsyncClient, due: Sequence[Delivery]) -> list[int | None]:
        return list(await asyncio.gather(*(self.send(client, delivery) for delivery in due)))

    async def send(self, client: httpx2.AsyncClient, delivery: Delivery) -> int | None:
        """The status code of the answer; None when there was none."""
        try:
            url, headers, extensions = await self._target(delivery.url)
            answer = await client.post(
                url, content=delivery.body, headers={**delivery.headers, **headers}, extensions=extensions
            )
        except (httpx2.HTTPError, OSError) as error:
            log.info("webhook endpoint %s did not answer: %s", delivery.endpoint_id, type(error).__name__)
            return None
        return answer.status_code

    async def send_one(self, delivery: Delivery) -> int | None:
        async with httpx2.AsyncClient(timeout=SEND_TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
            return await self.send(client, delivery)

    async def _target(self, url: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """URL with the address as a number, Host header, and the name for TLS. Raises OSError for a refused address."""
        parts = urlsplit(url)
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        address = str(found[0][4][0])
        if not self._allow_private and not ipaddress.ip_address(address).is_global:
            raise PermissionError("not a public address")
        number = f"[{address}]" if ":" in address else address
        at = urlunsplit((parts.scheme, f"{number}:{port}", parts.path or "/", parts.query, ""))
        return at, {"host": parts.netloc, "content-type": "application/json"}, {"sni_hostname": host}


class WebhookService:
    """Use cases on endpoints; every one belongs to `project`."""

    def __init__(self, registry: Registry, sender: WebhookSender) -> None:
        self._webhooks = registry.webhooks
        self._sender = sender

    async def create(self, project: str, name: str, url: str, event_types: Sequence[str]) -> NewSecret:
        return await asyncio.to_thread(self._webhooks.create, project, name, url, event_types)

    async def get(self, project: str, endpoint_id: str) -> EndpointRecord:
        return await asyncio.to_thread(self._webhooks.get, project, endpoint_id)

    async def list(self, project: str, after: str | None, limit: int) -> Page[EndpointRecord]:
        return await asyncio.to_thread(self._webhooks.list, project, after, limit)

    async def update(
        self, project: str, endpoint_id: str, name: str | None, url: str | None, event_types: Sequence[str] | None
    ) -> EndpointRecord:
        return await asyncio.to_thread(
            self._webhooks.update, project, endpoint_id, name=name, url=url, event_types=event_types
        )

    async def delete(self, project: str, endpoint_id: str) -> None:
        await asyncio.to_thread(self._webhooks.delete, project, endpoint_id)

    async def rotate(self, project: str, endpoint_id: str, keep_old: bool) -> NewSecret:
        return await asyncio.to_thread(self._webhooks.rotate_secret, project, endpoint_id, keep_old=keep_old)

    async def test(self, project: str, endpoint_id: str, event_type: str) -> int | None:
        """Sends an example at once; the endpoint's status code, None when it did not answer."""
        delivery = await asyncio.to_thread(self._webhooks.test, project, endpoint_id, event_type)
        return await self._sender.send_one(delivery)
