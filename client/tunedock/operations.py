"""The calls of the service, each written once: its name, its REST spelling and whether it may be repeated blindly.

A transport turns an operation, path parameters, a query and a body (plain JSON values) into a plain JSON answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import quote

Json = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """`path` is relative to `/v1`. `creates` asks for an idempotency key, so that a retry makes nothing twice.

    What is neither `repeatable` nor created under a key is sent once: its effect could be there although the answer is not.
    """

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    creates: bool = False
    repeatable: bool = True

    def url(self, path: Mapping[str, Any]) -> str:
        return self.path.format_map({key: quote(str(value), safe="@:") for key, value in path.items()})


class Transport(Protocol):
    """REST or gRPC. Every method raises only exceptions of the one tree."""

    async def call(
        self,
        operation: Operation,
        path: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
    ) -> Json: ...

    def stream(self, operation: Operation, body: Json) -> AsyncIterator[Json]: ...

    async def upload(self, filename: str, stream: BinaryIO, purpose: str) -> Json: ...

    async def publish(self, name: str, files: Mapping[str, BinaryIO]) -> Json: ...

    def download(self, operation: Operation, path: Mapping[str, Any], file: str) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


CHAT = Operation("chat", "POST", "/chat/completions")
COMPLETE = Operation("complete", "POST", "/completions")

LIST_MODELS = Operation("models.list", "GET", "/models")
CAPACITY = Operation("capacity", "GET", "/capacity")

LIST_FILES = Operation("files.list", "GET", "/files")
GET_FILE = Operation("files.get", "GET", "/files/{id}")
DELETE_FILE = Operation("files.delete", "DELETE", "/files/{id}")
FILE_CONTENT = Operation("files.content", "GET", "/files/{id}/content")

CREATE_JOB = Operation("jobs.create", "POST", "/fine_tuning/jobs", creates=True)
LIST_JOBS = Operation("jobs.list", "GET", "/fine_tuning/jobs")
GET_JOB = Operation("jobs.get", "GET", "/fine_tuning/jobs/{id}")
CANCEL_JOB = Operation("jobs.cancel", "POST", "/fine_tuning/jobs/{id}/cancel", repeatable=False)
PAUSE_JOB = Operation("jobs.pause", "POST", "/fine_tuning/jobs/{id}/pause", repeatable=False)
RESUME_JOB = Operation("jobs.resume", "POST", "/fine_tuning/jobs/{id}/resume", repeatable=False)
JOB_EVENTS = Operation("jobs.events", "GET", "/fine_tuning/jobs/{id}/events")
JOB_CHECKPOINTS = Operation("jobs.checkpoints", "GET", "/fine_tuning/jobs/{id}/checkpoints")

LIST_ADAPTERS = Operation("adapters.list", "GET", "/adapters")
GET_ADAPTER = Operation("adapters.get", "GET", "/adapters/{name}")
DELETE_ADAPTER = Operation("adapters.delete", "DELETE", "/adapters/{name}")
LIST_VERSIONS = Operation("adapters.versions", "GET", "/adapters/{name}/versions")
GET_VERSION = Operation("adapters.version", "GET", "/adapters/{name}/versions/{version}")
DOWNLOAD_VERSION = Operation("adapters.download", "GET", "/adapters/{name}/versions/{version}/download")
SET_ALIAS = Operation("adapters.alias", "PUT", "/adapters/{name}/aliases/{alias}", repeatable=False)
ROLLBACK = Operation("adapters.rollback", "POST", "/adapters/{name}/rollback", repeatable=False)
LOAD = Operation("adapters.load", "POST", "/adapters/{name}/versions/{version}/load")
PIN = Operation("adapters.pin", "PUT", "/adapters/{name}/versions/{version}/pin")
UNPIN = Operation("adapters.unpin", "DELETE", "/adapters/{name}/versions/{version}/pin")
HISTORY = Operation("adapters.history", "GET", "/adapters/{name}/history")

CREATE_KEY = Operation("keys.create", "POST", "/keys", repeatable=False)
LIST_KEYS = Operation("keys.list", "GET", "/keys")
REVOKE_KEY = Operation("keys.revoke", "DELETE", "/keys/{id}")
