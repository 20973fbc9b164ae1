"""Workers of the job queue that are going to be killed, or stopped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from tunedock_api.errors import Conflict
from tunedock_registry import job_writes
from tunedock_registry.records import Claim, JobResult
from tunedock_registry.registry import Registry

from .queue_model import WRITES
from .registry import open_registry, queued_job

STEPS = 3


def work_for_ever(root: Path, database_url: str | None, worker: str, ready: Connection) -> None:
    """Creates jobs and works them off until it is killed. Tells `ready` when it begins."""
    registry = open_registry(root, database_url=database_url)
    ready.send("working")
    for number in count():
        claim = registry.jobs.claim(worker)
        if claim is None:
            queued_job(registry, metadata={"number": str(number)})
        else:
            _train(registry, claim)


def work_off(registry: Registry, worker: str) -> None:
    """Until no job waits any more."""
    while claim := registry.jobs.claim(worker):
        _train(registry, claim)


def wake_up_late(root: Path, database_url: str | None, parent: Connection) -> None:
    """Claims a job, says "claimed", and after the next message tries every write; sends back what came of each."""
    registry = open_registry(root, database_url=database_url)
    claim = registry.jobs.claim("zombie")
    assert claim is not None
    parent.send("claimed")
    parent.recv()
    parent.send({name: _outcome(write, registry, claim) for name, write in WRITES.items()})


def _outcome(write: Callable[[Registry, Claim], object], registry: Registry, claim: Claim) -> str:
    try:
        write(registry, claim)
    except Conflict as error:
        return error.code
    return "written"


def _train(registry: Registry, claim: Claim) -> None:
    start = claim.job.saved_step or 0
    for step in range(start + 1, STEPS + 1):
        registry.jobs.heartbeat(claim)
        registry.jobs.emit(claim, f"Step {step}/{STEPS}: training loss=0.50", "metrics", data={"step": step})
        registry.jobs.add_checkpoint(
            claim, step, version_id=1_000 * claim.epoch + _number(claim) * 10 + step, metrics={}
        )
        registry.jobs.progress(claim, saved_step=step, trained_tokens=step)
    with registry.db.write() as session:
        job_writes.succeed(session, claim, _number(claim), "support@1", JobResult(trained_tokens=STEPS), 1)


def _number(claim: Claim) -> int:
    """A number of the job's own, for versions that nobody else has."""
    return int(claim.job.id.removeprefix("ftjob-"), 36) % 10**12 * 10_000
