"""One server, one plain channel to it, for the tests that only use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from support.fake_server import FakeServer, fake_server


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("rpc")) as running:
        yield running


@pytest.fixture
def channel(live: FakeServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(live.grpc) as opened:
        yield opened
