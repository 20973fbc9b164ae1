"""Everything that a running job tells the registry, on a thread of its own: training never waits for the disk.

The thread also beats, and looks twice a second whether the job was cancelled or paused. It stops by itself when the
registry cannot be reached for longer than the lease allows.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tunedock_api.errors import Conflict, TuneDockError, Unavailable
from tunedock_registry.jobs import Jobs
from tunedock_registry.leases import HEARTBEAT_S
from tunedock_registry.records import Claim, Control, EventLevel, EventType

_LOOK_S = 0.5
_UNREACHABLE_S = 20.0
_STALE_S = 10.0
Write = Callable[[], object]


class Stopped(Exception):
    """Training must end now: `control` says why, CONTINUE meaning "for no fault of the job". `lost`: the claim has passed to
    somebody else, or nobody knows whose it is; then nothing more may be written."""

    def __init__(self, control: Control, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.control, self.lost = control, lost


class Reporter:
    """Writes in order. A context manager: leaving it ends the thread after what is queued has been written."""

    def __init__(self, jobs: Jobs, claim: Claim) -> None:
        self._jobs, self._claim = jobs, claim
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._control = Control.CONTINUE
        self._lost: BaseException | None = None
        self._next_beat = self._reached = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._queue.put(None)
        self._thread.join()

    def event(
        self, message: str, type: EventType = "message", level: EventLevel = "info", data: dict[str, Any] | None = None
    ) -> None:
        self._queue.put(lambda: self._jobs.emit(self._claim, message, type, level, data))

    def progress(self, **changes: Any) -> None:
        """See `JobQueue.progress`."""
        self._queue.put(lambda: self._jobs.progress(self._claim, **changes))

    def check(self) -> None:
        """Raises Stopped when the job was cancelled, paused or taken over."""
        self.check_claim()
        if self._control is not Control.CONTINUE:
            raise Stopped(self._control, f"the job is to {self._control.value}")

    def check_claim(self) -> None:
        """Raises Stopped when the claim is lost. After a while without contact, such as a SIGSTOP, it asks the registry
        first."""
        if time.monotonic() - self._reached > _STALE_S and self._thread.is_alive():
            self._catch_up()
        if self._lost is not None:
            raise Stopped(Control.CONTINUE, f"the claim is lost: {self._lost}", lost=True)

    def flush(self) -> None:
        """Returns when everything told so far is written. Raises Stopped as `check`."""
        self._catch_up()
        self.check()

    def _catch_up(self) -> None:
        """Waits until the thread has written what is queued and has looked at the job after it."""
        done = threading.Event()
        self._queue.put(self._look)
        self._queue.put(done.set)
        while not done.wait(0.1) and self._thread.is_alive() and self._lost is None:
            pass

    def _run(self) -> None:
        while True:
            try:
                write = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._attempt(self._look)
                continue
            if write is None:
                return
            self._attempt(write)
            self._attempt(self._look)

    def _attempt(self, write: Write) -> None:
        """Tries until written, or until the lease would have run out."""
        while self._lost is None:
            try:
                write()
            except Unavailable as error:
                if time.monotonic() - self._reached > _UNREACHABLE_S:
                    self._lost = error
                time.sleep(0.2)
            except TuneDockError as error:
                self._refused(error)
                return
            else:
                self._reached = time.monotonic()
                return

    def _refused(self, error: TuneDockError) -> None:
        """A cancelled job takes no more writes either, but is still ours to let go of."""
        job = self._jobs.find(self._claim.job.id)
        if job.status == "cancelled" and job.epoch == self._claim.epoch:
            self._control = Control.CANCEL
        else:
            self._lost = error

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._control = self._jobs.heartbeat(self._claim)
            self._next_beat = now + HEARTBEAT_S
            return
        job = self._jobs.find(self._claim.job.id)
        if job.epoch != self._claim.epoch or job.status not in ("running", "paused"):
            raise Conflict(f"the job is {job.status}, epoch {job.epoch}", "stale_lease")
        if job.status == "paused":
            self._control = Control.PAUSE
