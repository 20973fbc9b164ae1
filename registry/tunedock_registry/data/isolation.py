"""Inspects files in a process of its own: a server that answers requests has no interpreter lock to spare for it, and
templates, schemas and data that were built to hurt end one child, not the server."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tunedock_api.errors import BadInput, Unavailable

from .. import children
from .inspection import Inspection


@dataclass(frozen=True)
class Limits:
    """`memory_bytes` is of address space, `time_s` of wall-clock time for one file."""

    memory_bytes: int = 4 << 30
    time_s: float = 600.0


@dataclass(frozen=True)
class Inspected:
    """`report` is `DataReport.as_dict()`.

    `ok` says that the file is well formed, `status_details` why not. What the chat template refuses is no fault of the
    file (other template kwargs may take it) and stands in `report["template"]` only.
    """

    ok: bool
    status_details: str | None
    report: dict[str, Any]


class IsolatedInspector:
    """`Inspector.inspect` in a child that stays for the next file. One file at a time, from any thread."""

    def __init__(self, model: Path | None, limits: Limits | None = None) -> None:
        self._model = model
        self._limits = limits or Limits()
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def inspect(self, asked: Inspection) -> Inspected:
        """Raises BadInput as `Inspector.inspect`, and when the child exceeds its limits or dies; Unavailable when closed."""
        with self._lock:
            answer = self._ask(json.dumps(asdict(asked)).encode())
        if "error" in answer:
            raise BadInput(**answer["error"])
        return Inspected(**answer)

    def close(self) -> None:
        """Ends the child, whatever it does; an inspection that waits for it is called off."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, Any]:
        self._check_open()
        child = self._running()
        line = children.exchange(child, request, self._limits.time_s)
        if not line:
            self._end()
            self._check_open()
            limits = f"{self._limits.time_s:.0f} s and {self._limits.memory_bytes >> 20} MiB"
            raise BadInput(f"The file could not be inspected within {limits}: split it.", "invalid_file_format")
        return dict(json.loads(line))

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("Files are not inspected any more: the server is shutting down.", "shutting_down")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = self._start()
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        model = str(self._model.absolute()) if self._model else ""
        # Of our environment only what finding the code needs, above all no secrets; one thread beside the engine's.
        env = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "HOME") if key in os.environ}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        arguments = model, str(self._limits.memory_bytes)
        return children.start("tunedock_registry.data.inspect_child", *arguments, env=env)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            children.end(child)
