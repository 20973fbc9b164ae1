from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import FakeTime, open_registry
from tunedock_registry.registry import Registry


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def registry(tmp_path: Path, time: FakeTime) -> Iterator[Registry]:
    registry = open_registry(tmp_path / "home", time)
    yield registry
    registry.close()
