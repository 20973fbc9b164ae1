"""Marker adapters for the session."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.live_server import Live
from support.marker_traffic import NUM_TOKENS, SYSTEM
from tunedock_registry.models import DEFAULT_MODEL

from benchmarks.markers import Marker, MarkerFactory

NUM_MARKERS = 48


@pytest.fixture(scope="session")
def markers(live: Live, tmp_path_factory: pytest.TempPathFactory) -> list[Marker]:
    model: Path = live.server.home / "models" / DEFAULT_MODEL
    return MarkerFactory(model, NUM_TOKENS, SYSTEM).make(tmp_path_factory.mktemp("markers"), NUM_MARKERS)
