"""Webhooks: endpoints through the openai client, deliveries verified with its own `unwrap`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.datasets import facts, jsonl
from support.fake_trainer import FakeTrainer
from support.running import Running, eventually, running
from tunedock_registry.webhooks import Delivery
from tunedock_server.listen import bind
from tunedock_server.run import http_server
from tunedock_server.services.webhooks import WebhookSender

Received = list[tuple[dict[str, str], bytes]]


@asynccontextmanager
async def receiver(received: Received, status: int = 200) -> AsyncIterator[str]:
    """An endpoint on a free port that keeps what it gets."""

    async def hook(request: Request) -> Response:
        received.append((dict(request.headers), await request.body()))
        return Response(status_code=status)

    sock = bind("127.0.0.1", 0)
    http = http_server(Starlette(routes=[Route("/hook", hook, methods=["POST"])]))
    task = asyncio.create_task(http.serve(sockets=[sock]))
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/hook"
    http.should_exit = True
    await task


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as started:
        yield started


async def test_endpoints_live_as_the_client_expects(server: Running) -> None:
    hooks = server.client.webhooks
    types = (await hooks.event_types.list()).data
    assert "fine_tuning.job.succeeded" in types
    made = await hooks.create(name="ci", url="https://example.com/h", event_types=["fine_tuning.job.failed"])
    assert made.signing_secret.startswith("whsec_")
    assert (await hooks.retrieve(made.id)).name == "ci"
    assert "signing_secret" not in ((await hooks.retrieve(made.id)).model_extra or {})
    updated = await hooks.update(made.id, event_types=["fine_tuning.job.succeeded"])
    assert (updated.name, updated.event_types) == ("ci", ["fine_tuning.job.succeeded"])
    rotated = await hooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    assert [endpoint.id async for endpoint in await hooks.list()] == [made.id]
    assert (await hooks.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await hooks.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await hooks.create(name="x", url="file:///etc/passwd", event_types=["fine_tuning.job.failed"])
    assert caught.value.param == "url"


async def test_a_finished_job_is_told_with_signatures_of_both_secrets_during_a_rotation(
    server: Running, tmp_path: Path
) -> None:
    client, received = server.client, Received()
    async with receiver(received) as url:
        made = await client.webhooks.create(name="ci", url=url, event_types=["fine_tuning.job.succeeded"])
        rotated = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        file = await client.files.create(file=("d.jsonl", jsonl(facts(12))), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model="tiny-base", training_file=file.id)
        await asyncio.to_thread(FakeTrainer(server.server.registry, server.base, tmp_path / "t").run)

        async def told() -> bool:
            return bool(received)

        await eventually(told)
    headers, body = received[0]
    for secret in (made.signing_secret, rotated.signing_secret):
        event = client.webhooks.unwrap(body, headers, secret=secret)
        assert event.type == "fine_tuning.job.succeeded"
        assert event.data.id == job.id
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret="whsec_" + "A" * 32)


async def test_a_test_delivery_says_what_the_endpoint_answered(server: Running) -> None:
    received = Received()
    async with receiver(received, 418) as url:
        made = await server.client.webhooks.create(name="ci", url=url, event_types=["fine_tuning.job.failed"])
        result = await server.client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
    assert (result.status_code, result.success) == (418, False)
    event = server.client.webhooks.unwrap(received[0][1], received[0][0], secret=made.signing_secret)
    assert event.type == "fine_tuning.job.failed"


async def test_with_authentication_a_private_address_is_never_called(server: Running) -> None:
    received = Received()
    async with receiver(received) as url, httpx2.AsyncClient() as client:
        delivery = Delivery(None, "we_x", url, {}, b"{}")
        assert await WebhookSender(server.server.registry, allow_private=False).send(client, delivery) is None
        assert received == []
        assert await WebhookSender(server.server.registry, allow_private=True).send(client, delivery) == 200
