"""A small Hugging Face hub on this machine: the listing of paths, the files of a commit, and a CDN on another host name.

Large files are answered as the hub answers them: a redirect to the CDN, with size and sha256 in headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

LARGE = ".safetensors"


@dataclass
class Hub:
    """`commits` maps (ORG/NAME, commit) to that commit's files. The rest is what goes wrong.

    `cuts`: so many downloads from the CDN end in the middle; `sent` replaces what the CDN sends for a file.
    """

    url: str = ""
    cdn: str = ""
    commits: dict[tuple[str, str], Mapping[str, bytes]] = field(default_factory=dict)
    cuts: int = 0
    sent: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cdn_saw_a_token: bool = False


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.cdn = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listing(files: Mapping[str, bytes], wanted: list[str]) -> bytes:
    entries = []
    for path in wanted:
        if path not in files:
            continue
        content = files[path]
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
        if path.endswith(LARGE):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return json.dumps(entries).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.hub.requests.append(f"POST {self.path}")
        _, _, _, org, name, _, commit = self.path.split("/")
        files = self.hub.commits.get((f"{org}/{name}", commit))
        if files is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer(200, _listing(files, parse_qs(body)["paths"]), {"Content-Type": "application/json"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("/cdn/"):
            self._from_cdn()
            return
        _, org, name, _, commit, file = self.path.split("/")
        content = self.hub.commits.get((f"{org}/{name}", commit), {}).get(file)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif file.endswith(LARGE):
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.cdn}/cdn/{org}/{name}/{commit}/{file}",
            }
            self._answer(302, b"", headers)
        else:
            etag = hashlib.sha1(content).hexdigest()  # noqa: S324
            self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _from_cdn(self) -> None:
        self.hub.cdn_saw_a_token |= "Authorization" in self.headers
        _, _, org, name, commit, file = self.path.split("/")
        content = self.hub.sent.get(file, self.hub.commits[f"{org}/{name}", commit][file])
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        if self.command == "GET" and self.hub.cuts:
            self.hub.cuts -= 1
            self._answer(206 if begin else 200, content[begin:], headers, send=(len(content) - begin) // 2)
        else:
            self._answer(206 if begin else 200, content[begin:], headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], send: int | None = None) -> None:
        """With `send` the connection ends after so many bytes of the body."""
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if send is None else body[:send])
        self.close_connection = self.close_connection or send is not None

    def log_message(self, *_: object) -> None:
        return


def _handler(hub: Hub) -> type[_Handler]:
    return type("HandlerOf", (_Handler,), {"hub": hub})
