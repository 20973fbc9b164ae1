"""Marker adapters for the session, and a server for each test that breaks things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live_server import Live, live_server
from support.marker_traffic import NUM_TOKENS, SYSTEM
from tunedock_registry.models import DEFAULT_MODEL

from benchmarks.markers import Marker, MarkerFactory

NUM_MARKERS = 48


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """No trainer: nothing is tuned here. Waits are long: answers are judged here, not the speed of a shared machine."""
    environment = {"TUNEDOCK_TRAINER": "false", "TUNEDOCK_ADAPTER_WAIT_S": "120", "TUNEDOCK_MAX_NUM_SEQS": "16"}
    with live_server(tmp_path_factory.mktemp("campaign") / "home", environment) as running:
        yield running


@pytest.fixture(scope="session")
def markers(live: Live, tmp_path_factory: pytest.TempPathFactory) -> list[Marker]:
    model: Path = live.server.home / "models" / DEFAULT_MODEL
    return MarkerFactory(model, NUM_TOKENS, SYSTEM).make(tmp_path_factory.mktemp("markers"), NUM_MARKERS)
