"""One action on adapters, crashing at any step of file system, database and object store, and the judging afterwards.

After kill -9 (what was written stays) and after a power cut (what was not synced may go) the registry is in the old state
or in the new one, every version that may be served has its files, and doing the same again ends as if nothing happened.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.versions import WAITING
from tunedock_registry.object_store import ObjectStore
from tunedock_registry.records import Target, VersionRecord, VersionState
from tunedock_registry.registry import Registry

from .crashing_store import CrashingStore
from .faulty_fs import Crash
from .power_loss import World
from .registry import FakeTime, open_registry
from .shelf import Shelf

NOW = 1_900_000_000.0
# A retiring version may lose its files a moment before its state says so: nobody asks for it any more.
OFFERED: tuple[VersionState, ...] = (*WAITING, "ready")
State = tuple[object, ...]


@dataclass(frozen=True)
class Action:
    """`run` may be done twice."""

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
    collect(registry)


def _reject_and_collect(registry: Registry, _shelf: Shelf) -> None:
    registry.adapters.hold({"0" * 64})
    registry.adapters.set_state(2, "rejected", "of no use")
    collect(registry)


def _delete(registry: Registry, _shelf: Shelf) -> None:
    if registry.adapters.list("default").items:
        registry.adapters.delete_adapter("default", "support")
    collect(registry)


def collect(registry: Registry) -> None:
    registry.adapters.collect(grace_s=-1)


ACTIONS = [
    Action("publish", _publish),
    Action("publish known bytes", _publish_known_bytes),
    Action("promote", _promote),
    Action("retire and collect", _retire_and_collect),
    Action("reject and collect", _reject_and_collect),
    Action("delete", _delete),
]
NAMES = [action.name for action in ACTIONS]


def two_ready_versions(shelf: Shelf) -> Shelf:
    """`production` points to the first; the registry is closed."""
    for seed in (1, 2):
        shelf.ready(seed=seed)
    shelf.promote(1)
    shelf.registry.close()
    return shelf


def state_of(registry: Registry) -> State:
    """What a caller can see."""
    adapters = registry.adapters
    if not adapters.list("default").items:
        return ("no adapter",)
    versions = tuple((version.ref, version.state) for version in adapters.versions("default", "support").items)
    aliases = tuple((alias.alias, alias.targets, alias.revision) for alias in adapters.aliases("default", "support"))
    moves = tuple(move.after for move in adapters.history("default", "support").items)
    return (versions, aliases, moves)


@dataclass(frozen=True)
class Run:
    """One action in a copy of the shelf's home, crashing at a step.

    `copy_database` and `copy_store` give a fresh copy of what lies elsewhere: a database URL, an object store.
    """

    shelf: Shelf
    action: Action
    folder: Path
    copy_database: Callable[[], str | None] = lambda: None
    copy_store: Callable[[], ObjectStore | None] = lambda: None
    urls: list[str | None] = field(default_factory=list)
    stores: list[ObjectStore | None] = field(default_factory=list)

    def crash(
        self, at: int, rng: random.Random | None, on_commit: Callable[[], object] | None = None
    ) -> tuple[list[str], bool]:
        """Returns the steps' names and whether it crashed. `rng` None is kill -9, otherwise the power is cut."""
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
        return world.calls, crashed

    def untouched(self) -> Run:
        """As before the action."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.shelf.registry.home.root, self.folder / "home")
        self.urls[:] = [self.copy_database()]
        self.stores[:] = [self.copy_store()]
        return self

    def open(self, world: World | None = None, home: str = "home") -> Registry:
        [store] = self.stores
        if store is not None and world is not None:
            store = CrashingStore(store, world)
        time = FakeTime(wall_s=NOW)
        return open_registry(self.folder / home, time, fs=world, database_url=self._database(), store=store)

    def _database(self) -> str:
        return self.urls[0] or f"sqlite:///{self.folder}/home/tunedock.db"

    def rehearse(self) -> tuple[list[str], set[State], State]:
        """Without a crash: the names of all steps, the states between its commits, and the last one."""
        seen: list[State] = []
        steps, _ = self.crash(0, None, lambda: seen.append(self.seen_from_outside()))
        return steps, {self.untouched().seen_from_outside(), *seen}, seen[-1]

    def seen_from_outside(self) -> State:
        registry = self.open()
        state = state_of(registry)
        registry.close()
        return state

    def check(self, allowed: set[State], final: State, hint: str) -> None:
        """The state is one that a run without a crash goes through; doing it again completes it and leaves no garbage."""
        registry = self.open()
        assert state_of(registry) in allowed, hint
        self._check_files(registry, hint)
        self.action.run(registry, self.shelf)
        assert state_of(registry) == final, hint
        self._check_files(registry, hint)
        collect(registry)
        assert not list(registry.home.tmp.iterdir()), hint
        stored = {f"sha256-{version.digest}" for version in _offered(registry)}
        assert {path.name for path in registry.home.adapters.iterdir()} == stored, hint
        [store] = self.stores
        assert store is None or {key.split("/")[1] for key, _ in store.list("adapters")} == stored, hint
        registry.close()

    def _check_files(self, registry: Registry, hint: str) -> None:
        """Every version that may be served can be had, with a store on a machine that has nothing yet."""
        with self._anywhere(registry) as reader:
            for version in _offered(registry):
                assert is_intact(reader.adapters.path(version), version.digest), hint

    @contextmanager
    def _anywhere(self, registry: Registry) -> Iterator[Registry]:
        if self.stores == [None]:
            yield registry
            return
        shutil.rmtree(self.folder / "elsewhere", ignore_errors=True)
        other = self.open(home="elsewhere")
        yield other
        other.close()


def _offered(registry: Registry) -> list[VersionRecord]:
    return list(registry.adapters.in_state(*OFFERED))
