"""The child of `isolation`: answers one JSON request a line until its input ends."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from tunedock_api.errors import TuneDockError

from ..background import give_way_as_process
from .inspection import Inspection, Inspector


def main(model: str, memory_bytes: int) -> None:
    give_way_as_process()
    for kind, limit in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    inspector = Inspector(Path(model) if model else None)
    for line in sys.stdin:
        print(json.dumps(_answer(inspector, json.loads(line))), flush=True)  # noqa: T201  # the answer


def _answer(inspector: Inspector, request: dict[str, Any]) -> dict[str, Any]:
    try:
        report = inspector.inspect(Inspection(**request))
    except TuneDockError as error:
        return {"error": {"message": error.message, "code": error.code, "param": error.param}}
    except MemoryError:
        return {
            "error": {"message": "Inspecting the file needs more memory than is allowed.", "code": "", "param": None}
        }
    return {"ok": report.file.ok, "status_details": report.file.status_details(), "report": report.as_dict()}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
