"""The trainer process: claims jobs and trains them, with the base model in memory. A failing job leaves it ready."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

from tunedock_api.errors import Unavailable
from tunedock_registry.records import Claim
from tunedock_registry.registry import Registry

from .base import Base
from .crew import Crew
from .run import Limits

log = logging.getLogger(__name__)

POLL_S = 1.0


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
    crew = Crew(registry, load, limits, stop)
    while not stop():
        claim = _claim(registry)
        if claim is not None:
            crew.join(claim)
            _train(registry, crew, stop)
        elif once:
            return
        else:
            stop.wait(POLL_S)


def _train(registry: Registry, crew: Crew, stop: Stop) -> None:
    """Until every member has ended; small jobs that wait may join, one a round, until none is left. Who stops takes no new
    one, and above all not the one that it has just let go of."""
    looked = float("-inf")
    while len(crew):
        crew.round()
        if time.monotonic() - looked > POLL_S:
            claim = _claim(registry) if not stop() and crew.has_room() else None
            if claim is not None:
                crew.join(claim)
            else:
                looked = time.monotonic()


def _claim(registry: Registry) -> Claim | None:
    try:
        return registry.jobs.claim(worker_id())
    except Unavailable as error:
        log.warning("the registry does not answer: %s", error)
        return None
