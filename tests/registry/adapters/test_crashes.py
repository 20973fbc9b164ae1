"""A crash at every step of the file system and of the database, in publish, promote, retire and collect.

After kill -9 (what was written stays) and after a power cut (what was not synced may go) the registry is in the old state
or in the new one, every version that may be served has its files, and doing the same again ends as if nothing happened.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.faulty_fs import Crash
from support.postgres import Postgres
from support.power_loss import World
from support.registry import FakeTime, open_registry
from support.shelf import Shelf
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.versions import LIVE
from tunedock_registry.records import Target
from tunedock_registry.registry import Registry

NOW = 1_900_000_000.0
GRACE_S = 100


@dataclass(frozen=True)
class Action:
    """`run` may be done twice. `state` of the registry is what must be the old or the new one."""

    name: str
    run: Callable[[Registry, Shelf], object]


def _publish(registry: Registry, shelf: Shelf) -> None:
    if registry.adapters.get("default", "support").latest == 2:
        registry.adapters.publish("default", "support", shelf.prepare(3), origin="imported")


def _publish_known_bytes(registry: Registry, shelf: Shelf) -> None:
    if registry.adapters.get("default", "support").latest == 2:
        registry.adapters.publish("default", "support", shelf.prepare(1), origin="imported")


def _promote(registry: Registry, _shelf: Shelf) -> None:
    registry.adapters.set_alias("default", "support", "production", [Target(2)], actor="a", reason="b")


def _retire_and_collect(registry: Registry, _shelf: Shelf) -> None:
    registry.adapters.retire(2)
    _collect(registry)


def _delete(registry: Registry, _shelf: Shelf) -> None:
    if registry.adapters.list("default").items:
        registry.adapters.delete_adapter("default", "support")
    _collect(registry)


def _collect(registry: Registry) -> None:
    registry.adapters.collect(grace_s=-1)


ACTIONS = [
    Action("publish", _publish),
    Action("publish known bytes", _publish_known_bytes),
    Action("promote", _promote),
    Action("retire and collect", _retire_and_collect),
    Action("delete", _delete),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return _fill(Shelf.open(tmp_path_factory.mktemp("shelf")))


def _fill(shelf: Shelf) -> Shelf:
    """Two ready versions, `production` on the first; closed."""
    for seed in (1, 2):
        shelf.ready(seed=seed)
    shelf.promote(1)
    shelf.registry.close()
    return shelf


State = tuple[object, ...]


def _state(registry: Registry) -> State:
    """What a caller can see; files that are not there show as such."""
    adapters = registry.adapters
    if not adapters.list("default").items:
        return ("no adapter",)
    versions = tuple((version.ref, version.state) for version in adapters.versions("default", "support").items)
    aliases = tuple((alias.alias, alias.targets, alias.revision) for alias in adapters.aliases("default", "support"))
    moves = tuple(move.after for move in adapters.history("default", "support").items)
    return (versions, aliases, moves)


def _check_files(registry: Registry, hint: str) -> None:
    for version in registry.adapters.in_state(*LIVE):
        assert is_intact(registry.home.adapter_dir(version.digest), version.digest), hint


@dataclass(frozen=True)
class Run:
    """One action in a copy of the shelf's home, crashing at a step."""

    shelf: Shelf
    action: Action
    folder: Path
    copy_database: Callable[[], str | None] = lambda: None
    urls: list[str | None] = field(default_factory=list)

    def crash(
        self, at: int, rng: random.Random | None, on_commit: Callable[[], object] | None = None
    ) -> tuple[int, bool]:
        """Returns the number of steps and whether it crashed. `rng` None is kill -9, otherwise the power is cut."""
        self.untouched()
        world = World(self.folder / "graveyard", at, on_commit)
        registry = self.open(world)
        world.attach(registry.db)
        crashed = False
        try:
            self.action.run(registry, self.shelf)
        except Crash:
            crashed = True
        finally:
            world.detach()
            registry.close()
        if rng is not None:
            world.lose(rng)
        return len(world.calls), crashed

    def untouched(self) -> Run:
        """As before the action."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.shelf.registry.home.root, self.folder / "home")
        self.urls[:] = [self.copy_database()]
        return self

    def open(self, world: World | None = None) -> Registry:
        return open_registry(self.folder / "home", FakeTime(wall_s=NOW), fs=world, database_url=self.urls[0])

    def check(self, allowed: set[State], final: State, hint: str) -> None:
        """The state is one that a run without a crash goes through; doing it again completes it and leaves no garbage."""
        registry = self.open()
        assert _state(registry) in allowed, hint
        _check_files(registry, hint)
        self.action.run(registry, self.shelf)
        assert _state(registry) == final, hint
        _check_files(registry, hint)
        _collect(registry)
        assert not list(registry.home.tmp.iterdir()), hint
        stored = {f"sha256-{version.digest}" for version in registry.adapters.in_state(*LIVE)}
        assert {path.name for path in registry.home.adapters.iterdir()} == stored, hint
        registry.close()


def _rehearse(run: Run) -> tuple[int, set[State], State]:
    """Without a crash: the number of steps, the states between its commits, and the last one."""
    seen: list[State] = []
    steps, _ = run.crash(0, None, lambda: seen.append(_seen_from_outside(run)))
    return steps, {_seen_from_outside(run.untouched()), *seen}, seen[-1]


def _seen_from_outside(run: Run) -> State:
    registry = run.open()
    state = _state(registry)
    registry.close()
    return state


@pytest.mark.parametrize("action", ACTIONS, ids=[action.name for action in ACTIONS])
@pytest.mark.parametrize("power_cut", [False, True], ids=["kill -9", "power cut"])
def test_a_crash_at_every_step_leaves_the_old_state_or_the_new_one(
    shelf: Shelf, fast_folder: Path, action: Action, power_cut: bool
) -> None:
    run = Run(shelf, action, fast_folder / "run")
    steps, allowed, final = _rehearse(run)
    assert steps > 5
    seed = random.SystemRandom().randrange(2**32)
    for at in range(1, steps + 1):
        crashed = run.crash(at, random.Random(seed + at) if power_cut else None)[1]
        assert crashed
        run.check(allowed, final, f"{action.name}, step {at} of {steps}, seed {seed}")


@pytest.fixture(scope="module")
def on_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shelf, Callable[[], str]]:
    """The same shelf on PostgreSQL, and a way to copy its database."""
    shelf = _fill(Shelf.open(tmp_path_factory.mktemp("shelf"), postgres.create_database("crash_template")))

    def copy() -> str:
        postgres.drop_database("crash_copy")
        return postgres.create_database("crash_copy", template="crash_template")

    return shelf, copy


@pytest.mark.campaign
@pytest.mark.parametrize("action", ACTIONS, ids=[action.name for action in ACTIONS])
def test_crashes_on_postgres(on_postgres: tuple[Shelf, Callable[[], str]], fast_folder: Path, action: Action) -> None:
    shelf, copy = on_postgres
    run = Run(shelf, action, fast_folder / "run", copy)
    steps, allowed, final = _rehearse(run)
    seed = random.SystemRandom().randrange(2**32)
    # Copying a database takes a tenth of a second: every third step, each time others.
    for at in range(1 + seed % 3, steps + 1, 3):
        run.crash(at, random.Random(seed + at))
        run.check(allowed, final, f"{action.name}, step {at} of {steps}, seed {seed}")


@pytest.mark.campaign
@pytest.mark.parametrize("action", ACTIONS, ids=[action.name for action in ACTIONS])
def test_many_power_cuts(shelf: Shelf, fast_folder: Path, action: Action) -> None:
    run = Run(shelf, action, fast_folder / "run")
    steps, allowed, final = _rehearse(run)
    seed = random.SystemRandom().randrange(2**32)
    for number in range(300):
        rng = random.Random(seed + number)
        at = rng.randint(1, steps)
        run.crash(at, rng)
        run.check(allowed, final, f"{action.name}, step {at} of {steps}, seed {seed + number}")
