"""Checks a stranger's adapter in a process of its own, with limits on memory, time and files.

The checks are plain Python and numpy, yet they read bytes that somebody may have built to hurt. Whatever goes wrong there
(memory, endless work, a crash of a library) ends one child, and the caller gets a `Rejected`.

A child serves one request. After the first request `IsolatedIntake` keeps one ready, so that a publish does not wait
for its imports.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tunedock_api.errors import Rejected
from tunedock_api.manifest import Manifest

from ..models.facts import BaseFacts
from .canonical import MAX_CONFIG_BYTES
from .intake import ManifestParts, PreparedAdapter

_MODULE = "tunedock_registry.adapters.intake_child"


@dataclass(frozen=True)
class IsolationLimits:
    """`memory_bytes` is of address space; `time_s` of wall-clock time and of processor time."""

    memory_bytes: int = 2 * 2**30
    time_s: int = 120


class IsolatedIntake:
    """`prepare` in a child. Safe from any thread; `close` ends the child that waits."""

    def __init__(self, limits: IsolationLimits | None = None) -> None:
        self._limits = limits or IsolationLimits()
        self._lock = Lock()
        self._spare: subprocess.Popen[bytes] | None = None

    def warm(self) -> None:
        """Starts a child ahead of the next request."""
        with self._lock:
            if self._spare is None or self._spare.poll() is not None:
                self._spare = _start()

    @property
    def spare_pid(self) -> int | None:
        """The process that waits for the next request."""
        return None if self._spare is None else self._spare.pid

    def prepare(self, config: bytes, weights: Path, base: BaseFacts, parts: ManifestParts) -> PreparedAdapter:
        """As `intake.prepare`. Raises Rejected also when the child exceeds a limit or dies."""
        if len(config) > MAX_CONFIG_BYTES:
            raise Rejected(f"adapter_config.json has {len(config)} bytes; at most {MAX_CONFIG_BYTES} are taken.")
        child = self._take()
        try:
            answer = self._ask(child, _request(config, weights, base, parts, self._limits))
        finally:
            _end(child)
            self.warm()
        if "error" in answer:
            raise Rejected(**answer["error"])
        manifest = Manifest.model_validate(answer["manifest"])
        return PreparedAdapter(base64.b64decode(answer["config"]), weights, manifest, parts.readme)

    def close(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            _end(spare)

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
        try:
            output, _ = child.communicate(request, timeout=self._limits.time_s)
        except subprocess.TimeoutExpired as error:
            raise Rejected(f"Checking the adapter took longer than {self._limits.time_s} s.") from error
        if child.returncode != 0:
            raise Rejected("The adapter could not be checked within the limits on memory and time.")
        return dict(json.loads(output))

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            spare, self._spare = self._spare, None
        return _start() if spare is None or spare.poll() is not None else spare


def _start() -> subprocess.Popen[bytes]:
    # One thread: OpenBLAS reserves address space for each. Nothing else of our environment, above all no secrets.
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")}
    if "PYTHONPATH" in os.environ:
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd="/",
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    child.wait()


def _request(config: bytes, weights: Path, base: BaseFacts, parts: ManifestParts, limits: IsolationLimits) -> bytes:
    plain = {
        "limits": asdict(limits),
        "config": base64.b64encode(config).decode(),
        "weights": str(weights.absolute()),
        "base": base.model_dump(mode="json"),
        "parts": _parts_to_json(parts),
    }
    return json.dumps(plain).encode()


def _parts_to_json(parts: ManifestParts) -> dict[str, Any]:
    """NaN survives, so that the child refuses it as the parent would."""
    dumped: dict[str, Any] = {"lineage": parts.lineage.model_dump(), "serving": parts.serving.model_dump()}
    for name in ("base", "probe"):
        value = getattr(parts, name)
        dumped[name] = None if value is None else value.model_dump()
    for name in ("training", "metrics", "packages"):
        dumped[name] = dict(getattr(parts, name))
    for name in ("trained_rank", "trained_alpha", "trained_rslora"):
        dumped[name] = getattr(parts, name)
    return dumped
