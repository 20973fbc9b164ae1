"""Child processes that answer one line with one line: for work on bytes that a stranger sent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

_READ_BYTES = 1 << 16


def start(module: str, *arguments: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`python -m module` in a group of its own, so that `end` ends whatever it has forked too."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(env),
        bufsize=0,
        process_group=0,
    )


def exchange(child: subprocess.Popen[bytes], request: bytes, time_s: float) -> bytes:
    """The line that answers `request`, empty when the child died or took longer than `time_s`: end it then."""
    if child.stdin is None or child.stdout is None:
        return b""
    try:
        child.stdin.write(request + b"\n")
    except BrokenPipeError:
        return b""
    return _read_line(child.stdout.fileno(), time.monotonic() + time_s)


def _read_line(descriptor: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return b""
        part = os.read(descriptor, _READ_BYTES)
        if not part:
            return b""
        parts.append(part)
    return b"".join(parts)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kills it with all that it started, and waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    child.wait()
