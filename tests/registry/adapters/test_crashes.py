"""A crash at every step of file system, database and object store: publish, promote, retire, reject and collect.

Every step of both databases and of the store is crashed at; what a crash may leave is judged in `adapter_crashes`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.adapter_crashes import ACTIONS, NAMES, Action, Run, two_ready_versions
from support.crashing_store import STORE
from support.postgres import Postgres
from support.s3 import S3, running_s3
from support.shelf import Shelf
from support.sizes import sized
from tunedock_registry.object_store import ObjectStore, open_store

CopyDatabase = Callable[[], str]
CopyStore = Callable[[], ObjectStore]
every_action = pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
STORING = [action for action in ACTIONS if action.name != "promote"]  # which has nothing to do with the store


def _crash_at_every_step(run: Run, *, power_cut: bool | None = None, kind: str = "", stride: int = 1) -> None:
    """At the steps whose names begin with `kind`. `power_cut` None: at each that or kill -9, by chance. Every
    `stride`-th of them, each time others."""
    steps, allowed, final = run.rehearse()
    assert len(steps) > 5
    seed = random.SystemRandom().randrange(2**32)
    chosen = [at for at, name in enumerate(steps, 1) if name.startswith(kind)]
    for at in chosen[seed % stride :: stride]:
        rng = random.Random(seed + at)
        cut = rng.random() < 0.5 if power_cut is None else power_cut
        crashed = run.crash(at, rng if cut else None)[1]
        assert crashed
        run.check(allowed, final, f"{run.action.name}, step {at} of {len(steps)}, seed {seed}")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return two_ready_versions(Shelf.open(tmp_path_factory.mktemp("shelf")))


@every_action
@pytest.mark.parametrize("power_cut", [False, True], ids=["kill -9", "power cut"])
def test_a_crash_at_every_step_leaves_the_old_state_or_the_new_one(
    shelf: Shelf, fast_folder: Path, action: Action, power_cut: bool
) -> None:
    _crash_at_every_step(Run(shelf, action, fast_folder / "run"), power_cut=power_cut)


@pytest.mark.parametrize("cuts", sized(campaign=60, slow=300))
@every_action
def test_many_power_cuts(shelf: Shelf, fast_folder: Path, action: Action, cuts: int) -> None:
    run = Run(shelf, action, fast_folder / "run")
    steps, allowed, final = run.rehearse()
    seed = random.SystemRandom().randrange(2**32)
    for number in range(cuts):
        rng = random.Random(seed + number)
        at = rng.randint(1, len(steps))
        run.crash(at, rng)
        run.check(allowed, final, f"{action.name}, step {at} of {len(steps)}, seed {seed + number}")


@pytest.fixture(scope="module")
def on_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shelf, CopyDatabase]:
    """The same shelf on PostgreSQL, and a way to copy its database."""
    url = postgres.create_database("crash_template")
    shelf = two_ready_versions(Shelf.open(tmp_path_factory.mktemp("shelf"), url))

    def copy() -> str:
        postgres.drop_database("crash_copy")
        return postgres.create_database("crash_copy", template="crash_template")

    return shelf, copy


@pytest.mark.campaign
@every_action
def test_a_crash_at_every_step_on_postgres(
    on_postgres: tuple[Shelf, CopyDatabase], fast_folder: Path, action: Action
) -> None:
    shelf, copy = on_postgres
    _crash_at_every_step(Run(shelf, action, fast_folder / "run", copy))


@pytest.fixture(scope="module")
def on_s3(shelf: Shelf) -> Iterator[CopyStore]:
    """A way to put the shelf's adapters into a store of their own."""
    with running_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield lambda: _filled(server, shelf)


def _filled(server: S3, shelf: Shelf) -> ObjectStore:
    store = open_store(server.fresh_url())
    for file in shelf.registry.home.adapters.glob("*/*"):
        store.create(f"adapters/{file.parent.name}/{file.name}", file)
    return store


def test_a_crash_at_a_call_of_the_store_leaves_the_old_state_or_the_new_one(
    shelf: Shelf, on_s3: CopyStore, fast_folder: Path
) -> None:
    """The campaign crashes at every one."""
    for action in STORING:
        run = Run(shelf, action, fast_folder / "run", copy_store=on_s3)
        _crash_at_every_step(run, kind=STORE, stride=12)


@pytest.mark.campaign
@pytest.mark.parametrize("action", STORING, ids=lambda action: action.name)
def test_a_crash_at_every_call_of_the_store(shelf: Shelf, on_s3: CopyStore, fast_folder: Path, action: Action) -> None:
    _crash_at_every_step(Run(shelf, action, fast_folder / "run", copy_store=on_s3), kind=STORE)
