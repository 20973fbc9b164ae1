"""The child of `isolation`: for each request, a line of stdin, it forks a process that checks one adapter and writes one
line to stdout. The child itself looks at no byte of an adapter, so it stays as clean as it began."""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tunedock_api.errors import Rejected
from tunedock_api.manifest import BaseModelIdentity, Lineage, Probe, ServingProfile

from ..background import give_way_as_process
from ..models.facts import BaseFacts
from .intake import ManifestParts, PreparedAdapter, prepare


def main() -> None:
    give_way_as_process()
    # OpenBLAS takes its buffer with the first product, and spins for ever when it cannot have it.
    warm = np.ones((64, 64), np.float32)
    _ = warm @ warm
    for line in sys.stdin.buffer:
        process = os.fork()
        if process == 0:
            _check(line)
        if os.waitpid(process, 0)[1] != 0:
            os.write(sys.stdout.fileno(), b"\n")  # ends whatever it had written: that is no JSON


def _check(line: bytes) -> None:
    """The whole life of the forked process."""
    try:
        request = json.loads(line)
        _confine(request["limits"])
        sys.stdout.write(json.dumps(answer(request)) + "\n")
        sys.stdout.flush()
        os._exit(0)
    finally:  # never back into the loop of the child, whatever was raised
        os._exit(1)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`{"config", "manifest"}`, or `{"error"}` with the fields of the Rejected."""
    try:
        prepared = _prepare(request)
    except Rejected as error:
        return {"error": {"message": error.message, "param": error.param, "details": error.details}}
    except MemoryError:
        return {"error": {"message": "Checking the adapter needs more memory than is allowed."}}
    return {"config": base64.b64encode(prepared.config).decode(), "manifest": prepared.manifest.model_dump(mode="json")}


def _prepare(request: dict[str, Any]) -> PreparedAdapter:
    config = base64.b64decode(request["config"])
    base = BaseFacts.model_validate(request["base"])
    return prepare(config, Path(request["weights"]), base, _parts(request["parts"]))


def _parts(plain: dict[str, Any]) -> ManifestParts:
    models = {
        "lineage": Lineage.model_validate(plain.pop("lineage")),
        "serving": ServingProfile.model_validate(plain.pop("serving")),
        "base": _optional(BaseModelIdentity, plain.pop("base")),
        "probe": _optional(Probe, plain.pop("probe")),
    }
    return ManifestParts(**models, **plain)


def _optional(model: Any, value: Any) -> Any:
    return None if value is None else model.model_validate(value)


def _confine(limits: dict[str, int]) -> None:
    """No file may grow, nothing dumps core, and memory and processor time are bounded."""
    for kind, limit in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["time_s"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
