"""client.webhooks"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from .conftest import PATIENCE_S, finish

Received = list[tuple[dict[str, str], bytes]]


@contextmanager
def receiver() -> Iterator[tuple[str, Received]]:
    """(URL, what arrived there) of an endpoint on this machine."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.05)


def test_endpoints_are_created_read_changed_listed_and_deleted(client: OpenAI) -> None:
    types: Any = client.webhooks.event_types.list().data
    assert {"fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"} <= set(types)
    made = client.webhooks.create(name="a", url="https://example.com/x", event_types=[types[0]])
    assert made.object == "webhook_endpoint"
    assert made.signing_secret.startswith("whsec_")
    assert client.webhooks.retrieve(made.id).url == "https://example.com/x"
    changed = client.webhooks.update(made.id, name="b", event_types=[types[1]])
    assert (changed.name, changed.event_types, changed.url) == ("b", [types[1]], "https://example.com/x")
    assert made.id in [endpoint.id for endpoint in client.webhooks.list(limit=1)]
    gone = client.webhooks.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "webhook_endpoint.deleted", True)
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_unwrap_accepts_every_delivery_also_while_secrets_rotate(
    client: OpenAI, start: Callable[..., FineTuningJob]
) -> None:
    with receiver() as (url, received):
        kinds: Any = ["fine_tuning.job.succeeded", "fine_tuning.job.cancelled"]
        made = client.webhooks.create(name="job", url=url, event_types=kinds)
        rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        cancelled = start(seed=41)
        client.fine_tuning.jobs.cancel(cancelled.id)
        succeeded = finish(client, start(epochs=1, seed=42, suffix="hooked"))
        wait_for(lambda: len(received) >= 2)
        client.webhooks.delete(made.id)
    seen = set()
    for headers, body in received:
        for secret in (made.signing_secret, rotated.signing_secret):
            event = client.webhooks.unwrap(body, headers, secret=secret)
            seen.add((event.type, getattr(event.data, "id", None)))
    assert seen == {(kinds[0], succeeded.id), (kinds[1], cancelled.id)}


def test_a_test_delivery_is_signed_and_an_old_one_is_rejected(client: OpenAI) -> None:
    with receiver() as (url, received):
        made = client.webhooks.create(name="t", url=url, event_types=["fine_tuning.job.failed"])
        result = client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        client.webhooks.delete(made.id)
    assert (result.object, result.success, result.status_code) == ("webhook_endpoint.test", True, 200)
    headers, body = received[0]
    assert client.webhooks.unwrap(body, headers, secret=made.signing_secret).type == "fine_tuning.job.failed"
    old = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, old, secret=made.signing_secret)
