"""`TuneDock`: the client without `async`. Every method here only hands its arguments to the asynchronous one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunedock_api.names import DEFAULT_ALIAS

from .adapters import AsyncAdapters, Ref
from .client import AsyncTuneDock
from .data import TrainingData
from .diff import Difference
from .files import AsyncFiles
from .inference import Messages, Prompt
from .jobs import POLL_S, AsyncJob, AsyncJobs
from .keys import AsyncKeys
from .operations import Json
from .portal import Portal
from .progress import ProgressOption
from .settings import Connection
from .tuning import Method
from .types import (
    Adapter,
    Alias,
    Checkpoint,
    Delta,
    FileInfo,
    HistoryEntry,
    JobEvent,
    JobInfo,
    Key,
    Metric,
    Model,
    Reply,
    Version,
)

if TYPE_CHECKING:
    import openai


class Files:
    """See `AsyncFiles`."""

    def __init__(self, files: AsyncFiles, portal: Portal) -> None:
        self._files = files
        self._portal = portal

    def upload(self, data: TrainingData, *, purpose: str = "fine-tune") -> FileInfo:
        return self._portal.run(self._files.upload(data, purpose=purpose))

    def get(self, file_id: str) -> FileInfo:
        return self._portal.run(self._files.get(file_id))

    def list(self, *, limit: int | None = None, purpose: str | None = None) -> list[FileInfo]:
        return self._portal.run(self._files.list(limit=limit, purpose=purpose))

    def delete(self, file_id: str) -> None:
        self._portal.run(self._files.delete(file_id))

    def content(self, file_id: str) -> Iterator[bytes]:
        return self._portal.iterate(self._files.content(file_id))

    def wait(self, file_id: str, *, timeout_s: float = 1800.0, poll_s: float = 0.5) -> FileInfo:
        return self._portal.run(self._files.wait(file_id, timeout_s=timeout_s, poll_s=poll_s))


class Job:
    """See `AsyncJob`."""

    def __init__(self, job: AsyncJob, portal: Portal) -> None:
        self._job = job
        self._portal = portal

    @property
    def info(self) -> JobInfo:
        return self._job.info

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def status(self) -> str:
        return self._job.status

    @property
    def model(self) -> str | None:
        return self._job.model

    def __repr__(self) -> str:
        return repr(self._job)

    def refresh(self) -> JobInfo:
        return self._portal.run(self._job.refresh())

    def cancel(self) -> JobInfo:
        return self._portal.run(self._job.cancel())

    def pause(self) -> JobInfo:
        return self._portal.run(self._job.pause())

    def resume(self) -> JobInfo:
        return self._portal.run(self._job.resume())

    def events(self, *, follow: bool = False, poll_s: float = POLL_S) -> Iterator[JobEvent]:
        return self._portal.iterate(self._job.events(follow=follow, poll_s=poll_s))

    def metrics(self) -> list[Metric]:
        return self._portal.run(self._job.metrics())

    def checkpoints(self) -> list[Checkpoint]:
        return self._portal.run(self._job.checkpoints())

    def wait(
        self, *, progress: ProgressOption = True, timeout_s: float | None = None, poll_s: float = POLL_S
    ) -> JobInfo:
        return self._portal.run(self._job.wait(progress=progress, timeout_s=timeout_s, poll_s=poll_s))

    def result(self) -> JobInfo:
        return self._job.result()


class Jobs:
    """See `AsyncJobs`."""

    def __init__(self, jobs: AsyncJobs, portal: Portal) -> None:
        self._jobs = jobs
        self._portal = portal

    def create(self, body: Json) -> Job:
        return Job(self._portal.run(self._jobs.create(body)), self._portal)

    def get(self, job_id: str) -> Job:
        return Job(self._portal.run(self._jobs.get(job_id)), self._portal)

    def list(self, *, limit: int | None = None) -> list[Job]:
        return [Job(job, self._portal) for job in self._portal.run(self._jobs.list(limit=limit))]


class Adapters:
    """See `AsyncAdapters`."""

    def __init__(self, adapters: AsyncAdapters, portal: Portal) -> None:
        self._adapters = adapters
        self._portal = portal

    def get(self, name: str) -> Adapter:
        return self._portal.run(self._adapters.get(name))

    def versions(self, name: str, *, limit: int | None = None) -> list[Version]:
        return self._portal.run(self._adapters.versions(name, limit=limit))

    def version(self, ref: Ref) -> Version:
        return self._portal.run(self._adapters.version(ref))

    def publish(self, name: str, folder: str | os.PathLike[str]) -> Version:
        return self._portal.run(self._adapters.publish(name, folder))

    def verdict(self, ref: Ref, *, timeout_s: float = 600.0) -> Version:
        return self._portal.run(self._adapters.verdict(ref, timeout_s=timeout_s))

    def promote(
        self, ref: Ref, *, alias: str = DEFAULT_ALIAS, expected_revision: int | None = None, reason: str = ""
    ) -> Alias:
        return self._portal.run(
            self._adapters.promote(ref, alias=alias, expected_revision=expected_revision, reason=reason)
        )

    def split(
        self,
        name: str,
        weights: Mapping[int, float],
        *,
        alias: str,
        expected_revision: int | None = None,
        reason: str = "",
    ) -> Alias:
        return self._portal.run(
            self._adapters.split(name, weights, alias=alias, expected_revision=expected_revision, reason=reason)
        )

    def rollback(self, name: str, *, alias: str = DEFAULT_ALIAS, reason: str = "") -> Alias:
        return self._portal.run(self._adapters.rollback(name, alias=alias, reason=reason))

    def load(self, ref: Ref) -> Version:
        return self._portal.run(self._adapters.load(ref))

    def pin(self, ref: Ref) -> Version:
        return self._portal.run(self._adapters.pin(ref))

    def unpin(self, ref: Ref) -> Version:
        return self._portal.run(self._adapters.unpin(ref))

    def history(self, name: str, *, limit: int | None = None) -> list[HistoryEntry]:
        return self._portal.run(self._adapters.history(name, limit=limit))

    def delete(self, name: str) -> None:
        self._portal.run(self._adapters.delete(name))

    def manifest(self, ref: Ref) -> Json:
        return self._portal.run(self._adapters.manifest(ref))

    def diff(self, before: Ref, after: Ref) -> list[Difference]:
        return self._portal.run(self._adapters.diff(before, after))

    def watch(self, name: str, *, poll_s: float = 0.5) -> Iterator[Adapter]:
        return self._portal.iterate(self._adapters.watch(name, poll_s=poll_s))

    def download(self, ref: Ref, into: str | os.PathLike[str]) -> Path:
        return self._portal.run(self._adapters.download(ref, into))

    def list(self, *, limit: int | None = None) -> list[Adapter]:
        return self._portal.run(self._adapters.list(limit=limit))


class Keys:
    """See `AsyncKeys`."""

    def __init__(self, keys: AsyncKeys, portal: Portal) -> None:
        self._keys = keys
        self._portal = portal

    def create(
        self, name: str, scopes: Sequence[str], *, project: str | None = None, expires_after_s: int | None = None
    ) -> Key:
        made = self._keys.create(name, scopes, project=project, expires_after_s=expires_after_s)
        return self._portal.run(made)

    def revoke(self, key_id: str, *, project: str | None = None) -> None:
        self._portal.run(self._keys.revoke(key_id, project=project))

    def list(self, *, project: str | None = None, limit: int | None = None) -> list[Key]:
        return self._portal.run(self._keys.list(project=project, limit=limit))


class TuneDock:
    """A client of one TuneDock service; see `AsyncTuneDock`.

    >>> client = TuneDock()
    >>> job = client.tune("dates.jsonl", adapter="dates")
    >>> job.wait()
    >>> client.chat("Due on the third of May 2024.", model="dates").text
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        grpc: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 2,
    ) -> None:
        self._client = AsyncTuneDock(base_url, api_key, grpc=grpc, timeout_s=timeout_s, max_retries=max_retries)
        self._portal = Portal()
        self.files = Files(self._client.files, self._portal)
        self.jobs = Jobs(self._client.jobs, self._portal)
        self.adapters = Adapters(self._client.adapters, self._portal)
        self.keys = Keys(self._client.keys, self._portal)

    @property
    def connection(self) -> Connection:
        return self._client.connection

    def chat(self, messages: Messages, *, model: str | None = None, **options: Any) -> Reply:
        return self._portal.run(self._client.chat(messages, model=model, **options))

    def stream(self, messages: Messages, *, model: str | None = None, **options: Any) -> Iterator[Delta]:
        return self._portal.iterate(self._client.stream(messages, model=model, **options))

    def complete(self, prompt: Prompt, *, model: str | None = None, **options: Any) -> Reply:
        return self._portal.run(self._client.complete(prompt, model=model, **options))

    def tune(
        self,
        data: TrainingData,
        *,
        adapter: str,
        model: str | None = None,
        validation: TrainingData | None = None,
        method: Method = "supervised",
        **knobs: Any,
    ) -> Job:
        started = self._client.tune(data, adapter=adapter, model=model, validation=validation, method=method, **knobs)
        return Job(self._portal.run(started), self._portal)

    def models(self) -> list[Model]:
        return self._portal.run(self._client.models())

    def base_model(self) -> str:
        return self._portal.run(self._client.base_model())

    def capacity(self) -> Json:
        return self._portal.run(self._client.capacity())

    def openai(self) -> openai.OpenAI:
        return self._client.openai()

    def close(self) -> None:
        """Closes connections and the background thread; the client cannot be used afterwards."""
        self._portal.run(self._client.aclose())
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
