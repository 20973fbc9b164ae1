"""Runs one helper process to its end, with its output in a log file and a tick while it works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TICK_S = 0.2


class ChildFailed(Exception):
    """The process ended with an error; the message is the last line it wrote."""


def run_child(
    args: Sequence[str], *, log: Path, env: Mapping[str, str], tick: Callable[[], None] | None = None
) -> None:
    """Waits for `args` to end; calls `tick` every 0.2 s. Never leaves the process behind. Raises ChildFailed."""
    with log.open("wb") as output:
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env))
        try:
            while (code := _wait(process)) is None:
                if tick:
                    tick()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code != 0:
        raise ChildFailed(_last_line(log) or f"exit status {code}")


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_TICK_S)
    except subprocess.TimeoutExpired:
        return None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ").rstrip(".")[:300] if lines else ""
