"""kill -9 at random moments of publish, promote and collect, in a process of its own: the old state or the new one."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

from support.killing import publish_for_ever
from support.shelf import Shelf
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.versions import LIVE
from tunedock_registry.records import Target

KILLS = 60
# Children of a server that has everything imported already: 20 ms each instead of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["safetensors.numpy", "tunedock_registry.registry", "alembic.command"])


def test_kill_at_any_moment_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    shelf = Shelf.open(tmp_path)
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    for kill in range(KILLS):
        _run_and_kill(tmp_path, moments.uniform(0.0, 0.25))
        _check_whole(shelf, f"kill {kill} of seed {seed}")
    # What the kills have left behind is garbage, and is collected as such.
    shelf.time.wall_s = time.time() + 10_000
    shelf.registry.adapters.collect(grace_s=1)
    assert not list(shelf.registry.home.tmp.iterdir())
    assert _stored_digests(shelf) == {path.name for path in shelf.registry.home.adapters.iterdir()}
    shelf.registry.close()


def _run_and_kill(folder: Path, delay_s: float) -> None:
    """Starts the child, waits until it works, kills it."""
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=publish_for_ever, args=(folder, there))
    child.start()
    assert here.poll(30)
    assert here.recv() == "working"
    time.sleep(delay_s)
    child.kill()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


def _check_whole(shelf: Shelf, hint: str) -> None:
    adapters = shelf.registry.adapters
    page = adapters.versions("default", "support", limit=10_000) if adapters.list("default").items else None
    for version in page.items if page else ():
        # A retiring version may lose its folder a moment before its state says so: nobody asks for it any more.
        if version.state in LIVE:
            assert is_intact(adapters.path(version), version.digest), hint
    numbers = [version.number for version in page.items] if page else []
    assert numbers == list(range(len(numbers), 0, -1)), hint
    _check_alias(shelf, hint)


def _check_alias(shelf: Shelf, hint: str) -> None:
    """The alias is the newest entry of its history, without gaps, and what it points to can be served."""
    adapters = shelf.registry.adapters
    if not adapters.list("default").items or not adapters.aliases("default", "support"):
        return
    alias = adapters.alias("default", "support", "production")
    moves = adapters.history("default", "support", limit=10_000).items
    assert [move.revision for move in moves] == list(range(alias.revision, 0, -1)), hint
    assert moves[0].after == alias.targets, hint
    ref = parse_ref("support")
    assert ref is not None
    version = adapters.snapshot().resolve("default", ref)
    assert version is not None, hint
    assert (Target(version.number or 0),) == alias.targets, hint


def _stored_digests(shelf: Shelf) -> set[str]:
    versions = shelf.registry.adapters.versions("default", "support", limit=10_000).items
    return {f"sha256-{version.digest}" for version in versions if version.state != "retired"}
