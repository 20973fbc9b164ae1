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
def made(live: Live, tmp_path_factory: pytest.TempPathFactory) -> list[Marker]:
    model: Path = live.server.home / "models" / DEFAULT_MODEL
    return MarkerFactory(model, NUM_TOKENS, SYSTEM).make(tmp_path_factory.mktemp("markers"), NUM_MARKERS + 1)


@pytest.fixture(scope="session")
def markers(made: list[Marker]) -> list[Marker]:
    """Shared by all tests: a server may hold one for the alias of an adapter that another test left behind."""
    return made[:-1]


@pytest.fixture
def unshared_marker(made: list[Marker]) -> Marker:
    """Weights that no other test publishes, so that no engine has them for another adapter's sake."""
    return made[-1]
