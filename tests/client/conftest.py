"""One server for the tests that only read or use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_server import FakeServer, fake_server
from tunedock import TuneDock


@pytest.fixture(scope="module", params=["rest", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """Every test that takes a client runs over both: what passes is parity."""
    return str(request.param)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp(f"live-{transport}")) as running:
        yield running


@pytest.fixture(scope="module")
def client(live: FakeServer, transport: str) -> Iterator[TuneDock]:
    grpc = live.grpc if transport == "grpc" else None
    with TuneDock(live.url, grpc=grpc, max_retries=0) as made:
        yield made
