"""What the registry hands out: frozen values, detached from the database. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

from tunedock_api.manifest import Manifest, ServingProfile
from tunedock_api.names import version_ref

T = TypeVar("T")

FileStatus = Literal["uploaded", "processed", "error"]
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
VersionState = Literal["published", "verifying", "ready", "rejected", "retiring", "retired"]
EventType = Literal["message", "metrics"]
EventLevel = Literal["info", "warn", "error"]
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list; the next one starts `after` the id of the last item."""

    items: list[T]
    has_more: bool


@dataclass(frozen=True)
class Attempt:
    """What a create call says about being a repetition of an earlier one.

    `key` is the caller's Idempotency-Key. Without one, `retry` (the client marks its blind retries, the first try has
    none) together with `body_sha256` finds what the first try made, for 60 seconds.
    """

    key: str | None = None
    body_sha256: str | None = None
    retry: bool = False


@dataclass(frozen=True)
class FileRecord:
    id: str
    project: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    status: FileStatus
    status_details: str | None
    report: dict[str, Any] | None
    created_at: int
    expires_at: int | None


@dataclass(frozen=True)
class PartRecord:
    id: str
    upload_id: str
    size_bytes: int
    sha256: str
    created_at: int


@dataclass(frozen=True)
class UploadRecord:
    """`size_bytes` is what was announced. `file` is set once completed, unless it was deleted since."""

    id: str
    project: str
    filename: str
    purpose: str
    mime_type: str
    size_bytes: int
    status: UploadStatus
    file: FileRecord | None
    created_at: int
    expires_at: int


@dataclass(frozen=True)
class JobSpec:
    """What the caller asks for. `adapter` None means `ft-` and the first 8 characters of the job's id."""

    model: str
    training_file: str
    adapter: str | None = None
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = 0
    method: dict[str, Any] = field(default_factory=lambda: {"type": "supervised"})
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    knobs: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    integrations: list[Any] | None = None


@dataclass(frozen=True)
class JobRecord:
    """`epoch` counts claims; `attempts` counts tries since the job last saved a step that it can resume from.

    `error` is for the caller (`code`, `message`, `param`); `traceback` of the last failed try is for the operator.
    """

    id: str
    project: str
    status: JobStatus
    adapter: str
    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    knobs: dict[str, Any]
    metadata: dict[str, str] | None
    integrations: list[Any] | None
    error: dict[str, Any] | None
    version_id: int | None
    fine_tuned_model: str | None
    result_files: list[str]
    trained_tokens: int | None
    estimated_finish: int | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    epoch: int
    attempts: int
    saved_step: int | None
    traceback: str | None


@dataclass(frozen=True)
class JobResult:
    """What a trainer adds to a job when it publishes the final version."""

    trained_tokens: int | None = None
    hyperparameters: dict[str, Any] | None = None
    result_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A worker's right to write to a job. It ends when somebody else claims the job: `epoch` has moved on then."""

    job: JobRecord
    epoch: int
    worker_id: str


class Control(Enum):
    """What a worker must do, as its heartbeat tells it."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    PAUSE = "pause"


@dataclass(frozen=True)
class EventRecord:
    id: str
    seq: int
    job_id: str
    created_at: int
    level: EventLevel
    message: str
    type: EventType
    data: dict[str, Any]


@dataclass(frozen=True)
class CheckpointRecord:
    """`fine_tuned_model_checkpoint` is the public reference, e.g. `support@ckpt-a1b2c3d4-40`."""

    id: str
    job_id: str
    created_at: int
    step_number: int
    version_id: int
    fine_tuned_model_checkpoint: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Where an alias points: a version number and its share of the traffic (0 < weight)."""

    version: int
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterRecord:
    id: int
    project: str
    name: str
    base_model: str
    latest: int | None
    created_at: int


@dataclass(frozen=True)
class VersionRecord:
    """`number` is None for a training checkpoint, which has a `tag` instead. `id` is unique in the whole registry."""

    id: int
    project: str
    adapter: str
    number: int | None
    tag: str | None
    ref: str
    digest: str
    state: VersionState
    reason: str | None
    origin: str
    base_model: str
    rank: int
    size_bytes: int
    manifest: Manifest
    parity: dict[str, Any]
    metrics: dict[str, Any]
    pinned: bool
    job_id: str | None
    created_at: int

    @property
    def serving(self) -> ServingProfile:
        return self.manifest.identity.serving


@dataclass(frozen=True, slots=True)
class ReadyVersion:
    """What serving needs of a `ready` version. A server holds one for each that is registered: under a kilobyte."""

    id: int
    project: str
    adapter: str
    number: int | None
    tag: str | None
    digest: str
    base_model: str
    rank: int
    serving: ServingProfile
    pinned: bool
    created_at: int

    @property
    def ref(self) -> str:
        return version_ref(self.adapter, self.number, self.tag)


@dataclass(frozen=True)
class AliasRecord:
    project: str
    adapter: str
    alias: str
    targets: tuple[Target, ...]
    revision: int
    updated_at: int


@dataclass(frozen=True)
class HistoryRecord:
    """One move of an alias. `before` is None when the alias was new."""

    id: str
    project: str
    adapter: str
    alias: str
    before: tuple[Target, ...] | None
    after: tuple[Target, ...]
    revision: int
    actor: str
    reason: str
    created_at: int
