"""The job queue against a plain model of it, driven by Hypothesis in any order of calls.

Workers never stop holding on to a claim, as a stopped process that wakes up would: every claim there ever was keeps
writing, and the model says which one may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select
from tunedock_api.errors import BadInput, Conflict
from tunedock_registry import job_writes
from tunedock_registry.job_queue import MAX_ATTEMPTS
from tunedock_registry.job_states import FINAL, retry_delay_s
from tunedock_registry.leases import LEASE_S
from tunedock_registry.records import Claim, Control, JobStatus
from tunedock_registry.registry import Registry
from tunedock_registry.tables.jobs import EventRow, JobRow

from .registry import FakeTime, spec

ERROR = {"code": "x", "message": "y", "param": None}
WORKERS = st.sampled_from(["w1", "w2"])
SCANNERS = st.integers(0, 1)
PICKS = st.integers(0, 19)
STEP = 1


def _succeed(registry: Registry, claim: Claim) -> None:
    with registry.db.write() as session:
        job_writes.succeed(session, claim, claim.epoch, "a@1", None, 0)


WRITES: dict[str, Callable[[Registry, Claim], object]] = {
    "save": lambda registry, claim: registry.jobs.progress(claim, saved_step=STEP),
    "emit": lambda registry, claim: registry.jobs.emit(claim, "hello"),
    "let go": lambda registry, claim: registry.jobs.release(claim, "queued"),
    "fail": lambda registry, claim: registry.jobs.fail(claim, ERROR),
    "retry": lambda registry, claim: registry.jobs.retry(claim, "ValueError: x"),
    "succeed": _succeed,
}


@dataclass
class Job:
    """What the model knows of one job. `holder` is the claim that may write."""

    id: str
    status: JobStatus = "validating_files"
    validated: bool = False
    holder: Claim | None = None
    epoch: int = 0
    attempts: int = 0
    saved_step: int = 0
    due_s: float = 0.0
    beat_s: float = 0.0
    events: int = 2
    successes: int = 0

    def holds(self, claim: Claim) -> bool:
        return self.holder is claim and self.status in ("running", "paused")


class QueueMachine(RuleBasedStateMachine):
    """`opened` are two processes on one registry; the machine is subclassed with it (see `machine_on`)."""

    opened: Callable[[], tuple[Registry, Registry, FakeTime]]

    @initialize()
    def start(self) -> None:
        self.first, self.second, self.time = type(self).opened()
        self.jobs: dict[str, Job] = {}
        self.claims: list[Claim] = []
        self.create(validated=True)
        self.claim("w1", scanner=0, wait_s=0)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(validated=st.sampled_from([True, True, False]))
    def create(self, validated: bool) -> None:
        record = self.first.jobs.create("default", spec())
        self.jobs[record.id] = Job(record.id)
        if validated:
            self._validate(self.jobs[record.id])

    @precondition(lambda self: self.jobs)
    @rule(pick=PICKS)
    def validate(self, pick: int) -> None:
        self._validate(self._job(pick))

    def _validate(self, job: Job) -> None:
        self.first.jobs.mark_validated(job.id)
        if not job.validated and job.status in ("validating_files", "paused"):
            job.validated = True
            job.events += 1
            job.status = "queued" if job.status == "validating_files" else job.status

    @precondition(lambda self: self.jobs)
    @rule(pick=PICKS, action=st.sampled_from(["cancel", "pause", "resume"]))
    def request(self, pick: int, action: str) -> None:
        job = self._job(pick)
        jobs = self.second.jobs
        call = {"cancel": jobs.request_cancel, "pause": jobs.request_pause, "resume": jobs.resume}[action]
        allowed = job.status == "paused" if action == "resume" else job.status not in FINAL
        if action == "pause" and job.status == "paused":
            allowed = False
        try:
            call("default", job.id)
        except BadInput:
            assert not allowed
            return
        assert allowed
        job.events += 1
        self._apply(job, action)

    def _apply(self, job: Job, action: str) -> None:
        if action == "resume":
            job.status = "queued" if job.validated else "validating_files"
            job.attempts, job.due_s, job.holder = 0, 0.0, None
        else:
            job.status = "cancelled" if action == "cancel" else "paused"

    @rule(worker=WORKERS, scanner=SCANNERS, wait_s=st.sampled_from([0, 60]))
    def claim(self, worker: str, scanner: int, wait_s: float) -> None:
        registry = (self.first, self.second)[scanner]
        self.time.advance(wait_s)
        self._scan(registry)
        claim = registry.jobs.claim(worker)
        due = [job for job in self.jobs.values() if job.status == "queued" and job.due_s <= self.time.wall_s]
        if claim is None:
            assert not due
            return
        assert claim.job.id == due[0].id, "the oldest one that is due"
        job = due[0]
        job.status, job.holder, job.beat_s = "running", claim, self.time.monotonic_s
        job.epoch, job.attempts, job.events = job.epoch + 1, job.attempts + 1, job.events + 1
        assert (claim.epoch, claim.job.attempts) == (job.epoch, job.attempts)
        self.claims.append(claim)

    @rule(scanner=SCANNERS, wait_s=st.sampled_from([0.0, LEASE_S / 2, LEASE_S]))
    def scan(self, scanner: int, wait_s: float) -> None:
        registry = (self.first, self.second)[scanner]
        self._scan(registry)
        self.time.advance(wait_s)
        self._scan(registry)
        if wait_s == LEASE_S:
            held = [job for job in self.jobs.values() if job.holder is not None and job.status in ("running", "paused")]
            assert not held, "a dead worker kept its job"

    def _scan(self, registry: Registry) -> None:
        for job_id in registry.jobs.requeue_abandoned():
            job = self.jobs[job_id]
            assert job.holder is not None
            assert self.time.monotonic_s - job.beat_s >= LEASE_S, "a living worker lost its job"
            self._interrupted(job)

    def _interrupted(self, job: Job) -> None:
        job.holder = None
        if job.status == "paused":
            return
        job.events += 1
        job.status = "failed" if job.attempts >= MAX_ATTEMPTS else "queued"
        job.due_s = int(self.time.wall_s) + retry_delay_s(job.attempts)

    @precondition(lambda self: self.claims)
    @rule(pick=PICKS)
    def heartbeat(self, pick: int) -> None:
        claim = self.claims[pick % len(self.claims)]
        job = self.jobs[claim.job.id]
        try:
            control = self.first.jobs.heartbeat(claim)
        except Conflict:
            assert not job.holds(claim)
            return
        if control is Control.CANCEL:
            assert job.status == "cancelled"
            return
        assert job.holds(claim)
        assert control is (Control.PAUSE if job.status == "paused" else Control.CONTINUE)
        job.beat_s = self.time.monotonic_s

    @precondition(lambda self: self.claims)
    @rule(pick=PICKS, what=st.sampled_from(sorted(WRITES)))
    def write(self, pick: int, what: str) -> None:
        """Any claim there ever was tries to write; it works when the model says that it may, and only then."""
        claim = self.claims[pick % len(self.claims)]
        job = self.jobs[claim.job.id]
        may = job.holds(claim) and (what != "succeed" or job.status == "running")
        try:
            WRITES[what](self.second, claim)
        except Conflict:
            assert not may
            return
        assert may, "a claim that had passed to somebody else has written"
        self._written(job, what)

    def _written(self, job: Job, what: str) -> None:
        if what == "save" and job.saved_step < STEP:
            job.saved_step, job.attempts = STEP, 1
        elif what == "emit":
            job.events += 1
        elif what == "let go":
            job.holder, job.attempts = None, max(0, job.attempts - 1)
            job.status = "paused" if job.status == "paused" else "queued"
        elif what == "fail":
            job.holder, job.status, job.events = None, "failed", job.events + 1
        elif what == "retry":
            self._interrupted(job)
        elif what == "succeed":
            job.status, job.events, job.successes = "succeeded", job.events + 2, job.successes + 1

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        with self.first.db.read() as session:
            rows = session.scalars(select(JobRow).order_by(JobRow.seq)).all()
            counted = select(EventRow.job_id, func.count()).group_by(EventRow.job_id)
            events: dict[str, int] = dict(session.execute(counted).tuples().all())
        expected = [(job.id, job.status, job.epoch, job.attempts, job.saved_step) for job in self.jobs.values()]
        assert [(row.id, row.status, row.epoch, row.attempts, row.saved_step or 0) for row in rows] == expected
        assert events == {job.id: job.events for job in self.jobs.values()}
        assert all(job.successes <= 1 for job in self.jobs.values())

    def _job(self, pick: int) -> Job:
        return list(self.jobs.values())[pick % len(self.jobs)]


def machine_on(opened: Callable[[], tuple[Registry, Registry, FakeTime]]) -> type[QueueMachine]:
    """A machine whose every run begins with what `opened` returns: an empty registry, opened twice."""
    return type("QueueMachineOnRegistry", (QueueMachine,), {"opened": staticmethod(opened)})
