"""One real server for the whole e2e session: real vLLM, real trainer process, real `openai` client."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from tunedock import TuneDock
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL, resolve_model

from examples.serving import ServerProcess, answers, read_text

BASE = DEFAULT_MODEL
# Small, so that more adapters than slots and host places, and more requests than seats, are cheap to make. The wait is long:
# tests judge answers, not the speed of a shared machine.
SMALL = {
    "TUNEDOCK_MAX_LORAS": "4",
    "TUNEDOCK_MAX_CPU_LORAS": "6",
    "TUNEDOCK_MAX_NUM_SEQS": "16",
    "TUNEDOCK_ADAPTER_WAIT_S": "120",
    "TUNEDOCK_MAX_LORA_RANK": "16",
    "TUNEDOCK_MAX_MODEL_LEN": "1024",
    "TUNEDOCK_KV_CACHE_BYTES": str(256 << 20),
    "TUNEDOCK_COLLECT_EVERY_S": "2",
    "TUNEDOCK_COLLECT_GRACE_S": "2",
    "TUNEDOCK_TOOL_PARSER": "hermes",
}


@dataclass(frozen=True)
class Live:
    """The running server and clients of it."""

    server: ServerProcess
    openai: OpenAI
    dock: TuneDock

    @property
    def env(self) -> dict[str, str]:
        """What the `tunedock` command needs to reach it."""
        return {**os.environ, "TUNEDOCK_BASE_URL": self.server.base_url, "NO_COLOR": "1"}

    def is_ready(self) -> bool:
        return answers(f"{self.server.root_url}/readyz")

    def processes(self, part: str) -> list[psutil.Process]:
        """Children of the server whose command line or name holds `part`."""
        children = psutil.Process(self.server.pid).children(recursive=True)
        return [child for child in children if part in _named(child)]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels, from /metrics."""
        lines = read_text(f"{self.server.root_url}/metrics").splitlines()
        rows = (line.rsplit(" ", 1) for line in lines if line.startswith(name))
        return sum(float(value) for _, value in rows)


@contextmanager
def live_server(home: Path) -> Iterator[Live]:
    """A server on `home`; base models come from the usual home."""
    home.mkdir(parents=True, exist_ok=True)
    usual = Home.resolve(os.environ.get("TUNEDOCK_HOME") or Path(__file__).parents[2] / ".home")
    resolve_model(None, usual)
    if not (home / "models").exists():
        (home / "models").symlink_to(usual.models)
    server = ServerProcess(home, environment=SMALL)
    with server, OpenAI(base_url=server.base_url, api_key="any") as openai, TuneDock(server.base_url) as dock:
        yield Live(server, openai, dock)


def chat_file(path: Path, rows: list[tuple[str, str]]) -> Path:
    """(question, answer) rows as chat JSONL."""
    lines = (
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) for q, a in rows
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def upload(client: OpenAI, path: Path, purpose: Any = "fine-tune") -> str:
    """Returns the file's id when the service has judged it."""
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose=purpose)
    return client.files.wait_for_processing(file.id, poll_interval=0.1).id


def eventually(condition: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.1) -> None:
    """Waits for `condition`. Fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(poll_s)


def _named(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""
