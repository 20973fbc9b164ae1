"""A `tunedock serve` of our own: started as a child process on free ports, waited for, stopped again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tunedock_server.supervisor import tethered

STOP_S = 60.0


class DidNotStart(RuntimeError):
    """The server ended, or was not ready in time. The message holds the end of its log."""


@dataclass
class ServerProcess:
    """The real server, with its engine and its trainer. `flags` go to `tunedock serve`, `environment` on top of ours.

    Use as a context manager, or call `start` and `stop`; `kill` leaves no time to clean up. The server ends with the
    thread that started it, however that ends.
    """

    home: Path
    flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_s: float = 240.0
    port: int = 0
    grpc_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.root_url}/v1"

    @property
    def log_path(self) -> Path:
        return self.home / "serve.log"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError("the server was not started")
        return self.process.pid

    def start(self) -> Self:
        """Returns when the server is ready. Raises DidNotStart."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Starts the process and returns at once."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self.grpc_port = self.grpc_port or free_port()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                tethered(self.command(), os.getpid()),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self) -> list[str]:
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        command = str(Path(sys.executable).with_name("tunedock"))
        return [command, "serve", "--home", str(self.home), *ports, *self.flags]

    def wait_ready(self) -> None:
        """Raises DidNotStart when the process ends or `ready_s` pass."""
        deadline = time.monotonic() + self.ready_s
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise DidNotStart(f"the server ended while starting:\n{self.log_tail()}")
            if answers(f"{self.root_url}/readyz"):
                return
            time.sleep(0.1)
        raise DidNotStart(f"the server was not ready after {self.ready_s:.0f} s:\n{self.log_tail()}")

    def log_tail(self, num_bytes: int = 4000) -> str:
        return self.log_path.read_bytes()[-num_bytes:].decode(errors="replace") if self.log_path.exists() else ""

    def kill(self) -> None:
        """SIGKILL, as a crash or the kernel's out-of-memory killer would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, then SIGKILL for the whole group after `STOP_S`. Returns the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answers(url: str) -> bool:
    """Whether GET `url` says 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:  # noqa: S310 - our own http address
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def read_text(url: str) -> str:
    """The body of GET `url`. Raises URLError."""
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - our own http address
        body: bytes = response.read()
        return body.decode()
