"""What is repeated and what is not, seen from the wire: a server that fails first and counts."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tunedock import TuneDock, Unavailable
from tunedock.operations import Json


class Flaky(ThreadingHTTPServer):
    """Answers 503 to the first two tries of every request, then what REST would; keeps all idempotency keys."""

    def __init__(self) -> None:
        self.tries: Counter[str] = Counter()
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def answer(self, request: str) -> tuple[int, Json]:
        self.tries[request] += 1
        if self.tries[request] < 3:
            return 503, {
                "error": {"message": "busy", "type": "server_error", "param": None, "code": "engine_overloaded"}
            }
        job = {"id": "ftjob-1", "status": "queued"}
        return 200, {"alias": "production", "targets": [], "revision": 1, "name": "x", **job}


class Handler(BaseHTTPRequestHandler):
    server: Flaky

    def _respond(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.keys.append(self.headers.get("idempotency-key"))
        status, body = self.server.answer(f"{self.command} {self.path}")
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_DELETE = _respond

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    with Flaky() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(flaky: Flaky) -> Iterator[TuneDock]:
    with TuneDock(f"http://127.0.0.1:{flaky.server_port}") as made:
        yield made


def test_a_read_is_repeated_until_it_is_answered(client: TuneDock, flaky: Flaky) -> None:
    assert client.adapters.get("x").name == "x"
    assert flaky.tries["GET /v1/adapters/x"] == 3


def test_a_creation_is_repeated_under_one_key(client: TuneDock, flaky: Flaky) -> None:
    assert client.jobs.create({"model": "m", "training_file": "f"}).id == "ftjob-1"
    assert flaky.tries["POST /v1/fine_tuning/jobs"] == 3
    assert flaky.keys[0]
    assert len(set(flaky.keys)) == 1


def test_two_creations_have_two_keys(client: TuneDock, flaky: Flaky) -> None:
    for _ in range(2):
        client.jobs.create({"model": "m", "training_file": "f"})
    assert len(set(flaky.keys)) == 2


def test_a_rollback_is_never_repeated(client: TuneDock, flaky: Flaky) -> None:
    with pytest.raises(Unavailable):
        client.adapters.rollback("x")
    assert flaky.tries["POST /v1/adapters/x/rollback"] == 1


def test_retries_can_be_switched_off(flaky: Flaky) -> None:
    with TuneDock(f"http://127.0.0.1:{flaky.server_port}", max_retries=0) as client, pytest.raises(Unavailable):
        client.adapters.get("x")
    assert flaky.tries["GET /v1/adapters/x"] == 1
