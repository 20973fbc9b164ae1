"""Files that vanish or rot, and an engine that dies, under traffic: one typed error where it belongs, nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.live_server import Live, eventually
from support.marker_traffic import Board, Callers, Rollouts, ask

from benchmarks.markers import QUESTIONS, Marker

pytestmark = pytest.mark.campaign


def delete_file(path: Path) -> None:
    path.unlink()


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [delete_file, cut_file, flip_a_bit])
def test_a_damaged_version_is_one_typed_error_for_who_asks_it(
    live: Live, markers: list[Marker], damage: Callable[[Path], None]
) -> None:
    prefix = damage.__name__.replace("_", "-")
    board = Board()
    rollouts = Rollouts(live, board, markers, [f"{prefix}-{index}" for index in range(8)])
    rollouts.begin()
    victim = f"{prefix}-0@1"
    board.aliases, board.versions = board.aliases[1:], ()
    with Callers(live.openai, board) as callers:
        eventually(lambda: residency(live, victim) == "stored", 60, f"{victim} leaves host memory")
        damage(weights(live, victim))
        refused = ask(live.openai, victim, QUESTIONS[0])
        time.sleep(1.0)
    assert refused.code == "adapter_unavailable"
    assert callers.wrong() == []
    assert live.is_ready()


def residency(live: Live, ref: str) -> str | None:
    return live.dock.adapters.version(ref).residency


def weights(live: Live, ref: str) -> Path:
    digest = live.dock.adapters.version(ref).digest.removeprefix("sha256:")
    return live.server.home / "adapters" / f"sha256-{digest}" / "adapter_model.safetensors"


def test_a_killed_engine_is_replaced_and_every_alias_answers_as_before(live: Live, markers: list[Marker]) -> None:
    board = Board()
    rollouts = Rollouts(live, board, markers, ["survivor-a", "survivor-b", "survivor-c"])
    rollouts.begin()
    rollouts.push("survivor-a")
    live.dock.adapters.promote("survivor-a@2")
    with Callers(live.openai, board) as callers:
        for engine in live.processes("EngineCore"):
            engine.kill()
        eventually(lambda: not live.is_ready(), 5, "readiness tells of the death")
        eventually(live.is_ready, 120, "the engine is back", poll_s=0.5)
    errors = {said.code for said in callers.said if said.code}
    assert errors <= {"engine_unavailable"}, "a dead engine is one typed error"
    for name, version in (("survivor-a", 2), ("survivor-b", 1), ("survivor-c", 1)):
        said = ask(live.openai, name, QUESTIONS[0])
        assert (said.model, said.text) == (f"{name}@{version}", board.golden[f"{name}@{version}"])
