"""One server for the tests that only read or use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_server import FakeServer, fake_server
from tunedock import TuneDock


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture(scope="module")
def client(live: FakeServer) -> Iterator[TuneDock]:
    with TuneDock(live.url, max_retries=0) as made:
        yield made
