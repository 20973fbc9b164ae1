"""The trainer process: claims jobs one after another, with the base model in memory. A failing job leaves it ready."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from types import FrameType

from tunedock_api.errors import Conflict, TuneDockError, Unavailable
from tunedock_registry.records import Claim, Control
from tunedock_registry.registry import Registry

from .base import Base
from .loop import Limits, run_job
from .reporter import Stopped

log = logging.getLogger(__name__)

POLL_S = 1.0
_RELEASE_TO = {Control.CONTINUE: "queued", Control.PAUSE: "paused", Control.CANCEL: "cancelled"}


class Stop:
    """Set by SIGTERM or SIGINT: the process saves the running step, lets go of its job and ends."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def set(self, *_signal: int | FrameType | None) -> None:
        self._event.set()

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.set)


def worker_id() -> str:
    """Names this process in the registry."""
    return f"{socket.gethostname()}-{os.getpid()}"


def work(registry: Registry, load: Callable[[], Base], limits: Limits, stop: Stop, *, once: bool = False) -> None:
    """Runs jobs until `stop`; with `once`, until none waits. The base is loaded for the first job and then kept."""
    base: Base | None = None
    name = worker_id()
    while not stop():
        claim = _claim(registry, name)
        if claim is None:
            if once:
                return
            stop.wait(POLL_S)
            continue
        with _Ending(registry, claim):
            base = base or load()
            run_job(registry, base, claim, limits, stop)


def _claim(registry: Registry, name: str) -> Claim | None:
    try:
        return registry.jobs.claim(name)
    except Unavailable as error:
        log.warning("the registry does not answer: %s", error)
        return None


class _Ending:
    """Always writes how a claimed job ended, unless the claim has passed to somebody else; swallows the job's failure."""

    def __init__(self, registry: Registry, claim: Claim) -> None:
        self._jobs, self._claim = registry.jobs, claim

    def __enter__(self) -> None:
        log.info("job %s: claimed (epoch %d)", self._claim.job.id, self._claim.epoch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _tb: object) -> bool:
        if error is None:
            log.info("job %s: published", self._claim.job.id)
            return True
        if not isinstance(error, Exception):
            return False
        try:
            self._write(error)
        except (Conflict, Unavailable) as late:
            log.warning("job %s: its end could not be written: %s", self._claim.job.id, late)
        return True

    def _write(self, error: Exception) -> None:
        log.info("job %s: ended with %s: %s", self._claim.job.id, type(error).__name__, error)
        if isinstance(error, Stopped):
            self._jobs.release(self._claim, _RELEASE_TO[error.control])  # type: ignore[arg-type]  # the three words
        elif isinstance(error, TuneDockError) and not isinstance(error, Unavailable):
            self._jobs.fail(self._claim, {"code": error.code, "message": error.message, "param": error.param})
        else:
            self._jobs.retry(self._claim, "".join(traceback.format_exception(error)))
