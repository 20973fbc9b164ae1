"""Checks a stranger's adapter in a process of its own, with limits on memory, time and files.

The checks are plain Python and numpy, yet they read bytes that somebody may have built to hurt. Whatever goes wrong there
(memory, endless work, a crash of a library) ends one process, and the caller gets a `Rejected`.

Every check runs in a fork of a child that has done nothing but import: beside streaming, starting Python and numpy anew for
each publish (half a second of a core) is what the streams would feel most.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tunedock_api.errors import Rejected
from tunedock_api.manifest import Manifest

from .. import children
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
    """`prepare` in a process of its own. Safe from any thread; `close` ends the child that waits."""

    def __init__(self, limits: IsolationLimits | None = None) -> None:
        self._limits = limits or IsolationLimits()
        self._lock = Lock()
        self._spare: subprocess.Popen[bytes] | None = None

    def warm(self) -> None:
        """Starts a child ahead of the next request."""
        self._keep(self._take())

    @property
    def spare_pid(self) -> int | None:
        """The process that waits for the next request."""
        return None if self._spare is None else self._spare.pid

    def prepare(self, config: bytes, weights: Path, base: BaseFacts, parts: ManifestParts) -> PreparedAdapter:
        """As `intake.prepare`. Raises Rejected also when a limit is exceeded or the check dies."""
        if len(config) > MAX_CONFIG_BYTES:
            raise Rejected(f"adapter_config.json has {len(config)} bytes; at most {MAX_CONFIG_BYTES} are taken.")
        answer = self._ask(_request(config, weights, base, parts, self._limits))
        if "error" in answer:
            raise Rejected(**answer["error"])
        manifest = Manifest.model_validate(answer["manifest"])
        return PreparedAdapter(base64.b64decode(answer["config"]), weights, manifest, parts.readme)

    def close(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            children.end(spare)

    def _ask(self, request: bytes) -> dict[str, Any]:
        child = self._take()
        line = children.exchange(child, request, self._limits.time_s)
        if not line:
            children.end(child)
            raise Rejected(f"Checking the adapter took longer than {self._limits.time_s} s.")
        self._keep(child)
        try:
            return dict(json.loads(line))
        except ValueError:  # nothing, or not all of it, before the check died
            raise Rejected("The adapter could not be checked within the limits on memory and time.") from None

    def _take(self) -> subprocess.Popen[bytes]:
        """The child that waits, or a new one while that is at work for somebody else."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None and spare.poll() is None:
            return spare
        if spare is not None:
            children.end(spare)
        return children.start(_MODULE, env=_environment())

    def _keep(self, child: subprocess.Popen[bytes]) -> None:
        """One child waits; others end."""
        with self._lock:
            self._spare, surplus = child, self._spare
        if surplus is not None:
            children.end(surplus)


def _environment() -> dict[str, str]:
    # One thread: OpenBLAS reserves address space for each. Nothing else of our environment, above all no secrets.
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")}
    return env | ({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {})


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
