"""An HTTP proxy before a server, which cuts connections: before a request arrives, or after it has had its effect."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive")


@dataclass
class Cuts:
    """Requests are counted from 1. Number `at` is cut, and with `lasting` every one after it; 0 cuts none.

    With `after` a request is served and only its answer is lost.
    """

    at: int = 0
    after: bool = False
    lasting: bool = False
    requests: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, at: int = 0, *, after: bool = False, lasting: bool = False) -> None:
        """Begins to count anew."""
        with self._lock:
            self.at, self.after, self.lasting, self.requests = at, after, lasting, []

    def hits(self, request: str) -> bool:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            return number == self.at or (self.lasting and 0 < self.at < number)


@contextmanager
def cutting_proxy(target: str) -> Iterator[tuple[str, Cuts]]:
    """The proxy's URL, and what it cuts."""
    cuts = Cuts()
    upstream = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            cut = cuts.hits(f"{self.command} {self.path}")
            if not cut or cuts.after:
                status, headers, answer = _forward(upstream, self.command, self.path, dict(self.headers), body)
            if cut:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", cuts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _forward(
    upstream: str, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = HTTPConnection(upstream, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
    if not any(name.lower() == "content-length" for name, _ in kept):
        kept.append(("Content-Length", str(len(answer))))
    return response.status, kept, answer
