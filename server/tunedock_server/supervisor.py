"""The trainer process beside the server: started, restarted with back-off, ended with the server, never orphaned."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tunedock_api.errors import TuneDockError

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 60.0
STEADY_S = 60.0
STOP_S = 35.0  # a trainer saves a step and lets go of its job within 30 s

# The kernel ends the child when our main thread ends, however that happens (prctl(2), PR_SET_PDEATHSIG = 1); the
# setting survives exec. The child may have lost its parent before the call, hence the check. It leads a group of its own, to
# be ended with all that it starts, but no session: those share processors evenly, whatever their nice values (sched(7)).
_TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
if os.getpgrp() != os.getpid():
    os.setpgrp()
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tethered(command: Sequence[str], parent_pid: int) -> list[str]:
    """A command line that runs `command` and ends with the process `parent_pid`."""
    return [sys.executable, "-c", _TETHER, str(parent_pid), *command]


class Supervisor:
    """Runs `command` until `stop`. `restarts` counts how often it had to be started again.

    `ended` is called, in a thread, with the process id of a child that died: its work can be given to others at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        parent_pid: int,
        environment: Mapping[str, str] | None = None,
        stop_s: float = STOP_S,
        ended: Callable[[int], None] = lambda pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = tethered(command, parent_pid)
        self._environment = environment
        self._stop_s = stop_s
        self._tell_ended = ended
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Returns after `stop`."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping:
            started = self._clock()
            end = await self._live()
            if self._ended():
                return
            backoff_s = FIRST_BACKOFF_S if self._clock() - started > STEADY_S else backoff_s
            log.error("the trainer process %s; starting it again in %.0f s", end, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
            self.restarts += 1

    async def _live(self) -> str:
        """One life of the process. Returns how it ended."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, env=self._environment
            )
        except OSError as error:
            return f"could not be started ({error})"
        self._process = process
        code = await process.wait()
        if not self._stopping:
            try:
                await asyncio.to_thread(self._tell_ended, process.pid)
            except TuneDockError as error:
                log.warning("the trainer's jobs wait until their leases end: %s", error.message)
        return f"ended with code {code}"

    def _ended(self) -> bool:
        return self._stopping

    async def stop(self) -> None:
        """SIGTERM, a while to save its work, then SIGKILL for whatever is left of its group."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            log.error("the trainer process did not end within %.0f s and is killed", self._stop_s)
            process.kill()  # it may not lead its group yet
        _kill_group(process.pid)
        await process.wait()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
