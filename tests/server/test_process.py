"""The server as a process: refusing to start in one line, draining, never leaving a trainer behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

TESTS = Path(__file__).resolve().parents[1]
CHAT = {"model": "tiny-base", "messages": [{"role": "user", "content": "x"}]}


@dataclass
class Process:
    process: subprocess.Popen[bytes]
    url: str
    home: Path

    def trainer_pid(self) -> int:
        file = self.home / "trainer.pid"
        wait_for(lambda: file.exists() and bool(file.read_text()))
        return int(file.read_text())


@contextmanager
def started(home: Path, token_s: float = 0.0) -> Iterator[Process]:
    port_file = home.parent / f"{home.name}.port"
    process = subprocess.Popen(
        [sys.executable, "-m", "support.serve_fake", str(home), str(port_file), str(token_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: port_file.exists() and bool(port_file.read_text()), 60)
        yield Process(process, f"http://127.0.0.1:{port_file.read_text()}", home)
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_sigterm_lets_running_answers_finish_refuses_new_ones_and_exits_0(tmp_path: Path) -> None:
    with started(tmp_path / "home", token_s=0.1) as server, httpx2.Client(base_url=server.url, timeout=30) as client:
        trainer = server.trainer_pid()
        answers: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: answers.append(client.post("/v1/chat/completions", json=CHAT)))
        asking.start()
        wait_for(lambda: "tunedock_leases 1.0" in client.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
        asking.join()
        assert answers[0].json()["choices"][0]["message"]["content"].count("base") == 20
        assert server.process.wait(20) == 0
        assert not alive(trainer)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with started(tmp_path / "home", token_s=1) as server:
        client = httpx2.Client(base_url=server.url, timeout=30)
        threading.Thread(target=lambda: _ignore(lambda: client.post("/v1/chat/completions", json=CHAT))).start()
        wait_for(lambda: "tunedock_leases 1.0" in httpx2.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx2.get(f"{server.url}/readyz").status_code == 503)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(15)
        assert time.monotonic() - began < 6


def _ignore(work: Callable[[], object]) -> None:
    try:
        work()
    except httpx2.HTTPError:
        return


def test_a_trainer_that_dies_is_started_again_and_one_whose_server_is_killed_ends_with_it(tmp_path: Path) -> None:
    with started(tmp_path / "home") as server:
        first = server.trainer_pid()
        os.kill(first, signal.SIGKILL)
        pid_file = tmp_path / "home" / "trainer.pid"
        wait_for(lambda: pid_file.read_text() not in ("", str(first)), 20)
        second = int(pid_file.read_text())
        assert alive(second)
        assert httpx2.get(f"{server.url}/readyz").status_code == 200
        server.process.kill()
        wait_for(lambda: not alive(second))


def test_a_server_killed_in_the_middle_starts_again_on_the_same_home(tmp_path: Path) -> None:
    with started(tmp_path / "home") as server:
        server.process.kill()
    (tmp_path / "home.port").unlink()
    with started(tmp_path / "home") as server:
        assert httpx2.get(f"{server.url}/readyz").status_code == 200


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from tunedock.cli import main; main()", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_keeps_the_server_from_starting_is_one_clear_line(tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    (tmp_path / "file").write_text("")
    cases = {
        "--port": (["--port", port], f"Cannot listen on 127.0.0.1:{port} (Address already in use)"),
        "home": (["--port", "0", "--home", str(tmp_path / "file" / "home")], "cannot be written"),
        "model": (["--port", "0", "--home", str(tmp_path / "h"), "--model", "./nope"], "does not exist"),
        "host": (["--host", "0.0.0.0"], "without authentication"),
        "rank": (["--max-lora-rank", "7"], "max_lora_rank"),
    }
    for name, (arguments, text) in cases.items():
        done = serve(*arguments)
        assert done.returncode != 0, name
        assert text in done.stderr, (name, done.stderr)
        assert done.stderr.count("\n") == 1, (name, done.stderr)
        assert "Traceback" not in done.stderr
    taken.close()


@pytest.mark.parametrize("missing", ["vllm"])
def test_a_missing_engine_names_the_pip_line(tmp_path: Path, missing: str) -> None:
    code = (
        "import importlib.util as u; real = u.find_spec; "
        f"u.find_spec = lambda name, *a: None if name == {missing!r} else real(name, *a); "
        "from tunedock.cli import main; main()"
    )
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0", "--home", str(tmp_path / "h"), "--model", str(model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "pip install 'tunedock[server," in done.stderr
    assert "Traceback" not in done.stderr
