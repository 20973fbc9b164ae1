"""A crash at every step of the file system and of the database, in what is done to files, uploads and jobs.

After kill -9 and after a power cut the registry is in the old state or in the new one, every file has its bytes, and
doing the same again ends as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faulty_fs import Crash
from support.power_loss import World
from support.registry import FakeTime, claimed_job, open_registry, spec
from support.sizes import sized
from tunedock_registry import job_writes
from tunedock_registry.collector import GRACE_S
from tunedock_registry.records import Attempt, Claim, JobResult
from tunedock_registry.registry import Registry

START = FakeTime().wall_s
KEY = Attempt(key="once")
State = tuple[object, ...]


@dataclass(frozen=True)
class Prepared:
    """A home with a file, a file that is gone but not collected, a pending upload and a running job."""

    home: Path
    file_id: str
    upload_id: str
    part_ids: tuple[str, ...]
    claim: Claim


Action = Callable[[Registry, Prepared], object]


def _create_file(registry: Registry, _prepared: Prepared) -> None:
    registry.files.create("default", "new.jsonl", "fine-tune", [b"new ", b"content"], attempt=KEY)


def _store_collected_bytes(registry: Registry, prepared: Prepared) -> None:
    _collect(registry, prepared)
    registry.files.create("default", "back.jsonl", "fine-tune", [b"gone"], attempt=KEY)


def _complete(registry: Registry, prepared: Prepared) -> None:
    registry.uploads.complete("default", prepared.upload_id, prepared.part_ids)


def _delete_and_collect(registry: Registry, prepared: Prepared) -> None:
    if any(file.id == prepared.file_id for file in registry.files.list("default").items):
        registry.files.delete("default", prepared.file_id)
    _collect(registry, prepared)


def _collect(registry: Registry, _prepared: Prepared) -> None:
    registry.collector.collect(grace_s=GRACE_S // 2)


def _create_job(registry: Registry, _prepared: Prepared) -> None:
    registry.jobs.create("default", spec(metadata={"a": "b"}), KEY.key)


def _succeed(registry: Registry, prepared: Prepared) -> None:
    with registry.db.write() as session:
        if job_writes.result_of(session, prepared.claim) is None:
            job_writes.succeed(session, prepared.claim, 1, "support@1", JobResult(trained_tokens=9), 1)


ACTIONS: dict[str, Action] = {
    "create a file": _create_file,
    "store bytes that are being collected": _store_collected_bytes,
    "complete an upload": _complete,
    "delete and collect": _delete_and_collect,
    "create a job": _create_job,
    "finish a job": _succeed,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("prepared") / "home"
    registry = open_registry(root, FakeTime())
    kept, gone = (registry.files.create("default", name, "fine-tune", [name.encode()]) for name in ("kept", "gone"))
    registry.files.delete("default", gone.id)
    upload = registry.uploads.create("default", "joined", "fine-tune", 4, "text/plain")
    parts = tuple(registry.uploads.add_part("default", upload.id, [piece]).id for piece in (b"on", b"e!"))
    prepared = Prepared(root, kept.id, upload.id, parts, claimed_job(registry))
    registry.close()
    return prepared


@dataclass(frozen=True)
class Run:
    """One action in a copy of the prepared home, half a grace time and some seconds later."""

    prepared: Prepared
    action: Action
    folder: Path

    def crash(self, at: int, rng: random.Random | None, on_commit: Callable[[], object] | None = None) -> int:
        """Returns the number of steps. `rng` None is kill -9, otherwise the power is cut; `at` 0 is no crash."""
        self.untouched()
        world = World(self.folder / "graveyard", at, on_commit)
        registry = self.open(world)
        world.attach(registry.db)
        try:
            self.action(registry, self.prepared)
            assert at == 0
        except Crash:
            assert at > 0
        finally:
            world.detach()
            registry.close()
        if rng is not None:
            world.lose(rng)
        return len(world.calls)

    def untouched(self) -> Run:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.prepared.home, self.folder / "home")
        return self

    def open(self, world: World | None = None) -> Registry:
        # Uploads take parts for an hour; half of the collector's grace would be over then.
        time = FakeTime(wall_s=START + (60 if self.action is _complete else GRACE_S // 2 + 60))
        return open_registry(self.folder / "home", time, fs=world)

    def state(self) -> State:
        """What a caller can see. Every file's bytes are read."""
        registry = self.open()
        files = registry.files.list("default").items
        for file in files:
            content = registry.files.open("default", file.id).read()
            assert hashlib.sha256(content).hexdigest() == file.sha256
        jobs = registry.jobs.list("default").items
        events = [tuple(event.message[:12] for event in registry.jobs.events_since(job.id)) for job in jobs]
        upload = registry.uploads.get("default", self.prepared.upload_id)
        registry.close()
        named = tuple(file.filename for file in files)
        told = tuple((job.status, job.metadata is None, messages) for job, messages in zip(jobs, events, strict=True))
        return named, upload.status, upload.file is not None and upload.file.filename, told

    def check(self, allowed: set[str], final: str, hint: str) -> None:
        assert repr(self.state()) in allowed, hint
        registry = self.open()
        self.action(registry, self.prepared)
        registry.close()
        assert repr(self.state()) == final, hint


def _rehearse(run: Run) -> tuple[int, set[str], str]:
    """Without a crash: the number of steps, the states between its commits, and the last one."""
    seen: list[str] = []
    steps = run.crash(0, None, lambda: seen.append(repr(run.state())))
    seen.append(repr(run.state()))
    return steps, {repr(run.untouched().state()), *seen}, seen[-1]


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("power_cut", [False, True], ids=["kill -9", "power cut"])
def test_a_crash_at_every_step_leaves_the_old_state_or_the_new_one(
    prepared: Prepared, home_root: Path, name: str, power_cut: bool
) -> None:
    run = Run(prepared, ACTIONS[name], home_root)
    steps, allowed, final = _rehearse(run)
    assert steps > 5
    seed = random.SystemRandom().randrange(2**32)
    for at in range(1, steps + 1):
        run.crash(at, random.Random(seed + at) if power_cut else None)
        run.check(allowed, final, f"{name}, step {at} of {steps}, seed {seed}")


@pytest.mark.parametrize("cuts", sized(campaign=40, slow=200))
@pytest.mark.parametrize("name", ACTIONS)
def test_many_power_cuts(prepared: Prepared, home_root: Path, name: str, cuts: int) -> None:
    run = Run(prepared, ACTIONS[name], home_root)
    steps, allowed, final = _rehearse(run)
    seed = random.SystemRandom().randrange(2**32)
    for number in range(cuts):
        rng = random.Random(seed + number)
        at = rng.randint(1, steps)
        run.crash(at, rng)
        run.check(allowed, final, f"{name}, step {at} of {steps}, seed {seed + number}")
