"""One bf16 and one float32 engine for all tests of this folder, and three random versions that fill all their slots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.engine import default_model, engine_settings, model_facts, random_version, running
from tunedock_registry.models.facts import BaseFacts
from tunedock_server.pool import EnginePool, Pinned


@pytest.fixture(scope="session")
def base_model() -> Path:
    path = default_model()
    if not path.is_dir():
        pytest.fail(f"the default model is not in {path}: run `tunedock models pull`")
    return path


@pytest.fixture(scope="session")
def base(base_model: Path) -> BaseFacts:
    return model_facts(base_model)


@pytest.fixture(scope="session")
def versions(base: BaseFacts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pinned, ...]:
    """Ranks differ, so that slots are filled to different heights."""
    root = tmp_path_factory.mktemp("versions")
    return tuple(random_version(root, base, f"line{n}@1", n, rank, 0.1) for n, rank in enumerate((8, 16, 4)))


@pytest.fixture(scope="session")
async def bf16(base_model: Path, versions: tuple[Pinned, ...]) -> AsyncIterator[EnginePool]:
    async with running(engine_settings(base_model)) as engine:
        for version in versions:
            await engine.load(version)
        yield engine


@pytest.fixture(scope="session")
async def float32(base_model: Path, versions: tuple[Pinned, ...]) -> AsyncIterator[EnginePool]:
    async with running(engine_settings(base_model, dtype="float32")) as engine:
        for version in versions:
            await engine.load(version)
        yield engine
