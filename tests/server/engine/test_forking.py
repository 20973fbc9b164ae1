"""Engines are forked from one process that has imported vLLM before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.engine import engine_settings
from tunedock_server.engine import environment, forking
from tunedock_server.pool import EnginePool
from vllm.platforms import current_platform

IMPORTED = "tunedock_server.engine.imported"  # the fork server's command line names it


@pytest.fixture
def at_start(base_model: Path) -> Iterator[None]:
    """The environment in which an engine is started."""
    with environment.temporarily(os.environ, environment.process_variables(engine_settings(base_model))):
        yield


def _fork_servers() -> list[psutil.Process]:
    """Of this process; a server that other tests have started has its own."""
    return [child for child in psutil.Process().children() if IMPORTED in " ".join(child.cmdline())]


async def test_all_engines_come_from_one_process_that_stays(bf16: EnginePool, float32: EnginePool) -> None:
    (server,) = _fork_servers()
    assert ["EngineCore" in " ".join(child.cmdline()) for child in server.children()] == [True, True]


@pytest.mark.usefixtures("bf16")
def test_that_process_has_vllm_and_nothing_that_serving_does_not_need() -> None:
    (server,) = _fork_servers()
    loaded = {part for library in server.memory_maps() for part in Path(library.path).parts}
    assert "vllm" in loaded
    assert not loaded & {"scipy", "pandas", "pyarrow", "sklearn", "triton"}


def test_the_platform_is_known_before_vllm_is_imported() -> None:
    assert environment.on_cpu() == current_platform.is_cpu()


@pytest.mark.usefixtures("at_start", "bf16")
def test_a_forked_process_has_the_environment_of_its_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAID_LATER", "yes")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    before, file = _fork_servers(), tmp_path / "said"
    process = forking.engine_context().Process(
        target=subprocess.run, args=(["sh", "-c", f'echo "$SAID_LATER ${{HF_HUB_OFFLINE-gone}}" > {file}'],)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert file.read_text().split() == ["yes", "gone"]
    assert _fork_servers() == before


def test_what_libraries_read_when_they_are_loaded_takes_another_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    one = forking.fork_server()
    assert forking.fork_server() is one
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert forking.fork_server() is not one
