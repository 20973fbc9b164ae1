"""The jobs that train at present: one, or several small ones whose batches share the passes through the base."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from tunedock_api.errors import NotFound
from tunedock_registry.records import Claim, JobRecord
from tunedock_registry.registry import Registry

from .base import Base
from .ending import ending
from .loop import Steps, train_job
from .losses import Tally
from .run import Limits
from .together import Wanted, backward

log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 4
_AUTO_BATCH = 8


@dataclass
class _Member:
    """A job in training and the batch that it waits for."""

    job: JobRecord
    steps: Steps
    wanted: Wanted


class Crew:
    """Trains all its members in step. A job that fails leaves; the others go on. The base is loaded for the first job."""

    def __init__(
        self, registry: Registry, load: Callable[[], Base], limits: Limits, stopping: Callable[[], bool]
    ) -> None:
        self._registry, self._load, self._limits, self._stopping = registry, load, limits, stopping
        self._base: Base | None = None
        self._members: list[_Member] = []

    def __len__(self) -> int:
        return len(self._members)

    def join(self, claim: Claim) -> None:
        """Prepares the job up to its first batch."""
        steps = self._guarded(claim)
        wanted = next(steps, None)
        if wanted is not None:
            self._members.append(_Member(claim.job, steps, wanted))

    def _guarded(self, claim: Claim) -> Steps:
        """The job's steps; whatever ends them is written to the registry."""
        with ending(self._registry, claim):
            self._base = self._base or self._load()
            yield from train_job(self._registry, self._base, claim, self._limits, self._stopping)

    def round(self) -> None:
        """One step of every member."""
        try:
            wanted = [member.wanted for member in self._members]
            tallies = backward(wanted, self._limits.max_tokens)
        except Exception as error:  # the edge of the process: each job writes its own end
            self._members = [member for member in self._members if self._advance(member, error)]
            return
        pairs = list(zip(self._members, tallies, strict=True))
        self._members = [member for member, tally in pairs if self._advance(member, tally)]

    def _advance(self, member: _Member, result: Tally | Exception) -> bool:
        """Hands the member its tally, or the failure; False when the job has ended."""
        try:
            if isinstance(result, Exception):
                member.wanted = member.steps.throw(result)
            else:
                member.wanted = member.steps.send(result)
        except StopIteration:
            return False
        return True

    def has_room(self) -> bool:
        """Whether the next job in the queue may join: it and the present ones take small steps."""
        budget = self._limits.together_tokens
        waiting = self._registry.jobs.with_status("queued") if budget else ()
        if not waiting:
            return False
        jobs = [*(member.job for member in self._members), waiting[0]]
        return sum(self._step_tokens(job) for job in jobs) <= budget

    def _step_tokens(self, job: JobRecord) -> float:
        """Tokens of one optimizer step, guessed from the file's size; infinite when unknown."""
        try:
            file = self._registry.files.get(job.project, job.training_file)
        except NotFound:
            return float("inf")
        examples = (file.report or {}).get("num_examples") or 0
        if not examples:
            return float("inf")
        settings = job.method.get(job.method.get("type", "supervised")) or {}
        asked = (settings.get("hyperparameters") or {}).get("batch_size", "auto")
        batch = asked if isinstance(asked, int) else _AUTO_BATCH
        return batch * file.size_bytes / examples / _BYTES_PER_TOKEN
