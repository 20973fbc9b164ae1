"""TuneDock's Python client: tune adapters, move them between versions, ask them. Light: no torch, no vLLM."""

from tunedock_api.errors import (
    BadInput,
    Conflict,
    DeadlineExceeded,
    Internal,
    NotFound,
    Overloaded,
    PermissionDenied,
    Rejected,
    TuneDockError,
    Unauthenticated,
    Unavailable,
)

from .client import AsyncTuneDock
from .jobs import AsyncJob
from .sync import Job, TuneDock
from .types import Adapter, Alias, Checkpoint, Delta, FileInfo, HistoryEntry, JobEvent, JobInfo, Metric, Reply, Version

__all__ = [
    "Adapter",
    "Alias",
    "AsyncJob",
    "AsyncTuneDock",
    "BadInput",
    "Checkpoint",
    "Conflict",
    "DeadlineExceeded",
    "Delta",
    "FileInfo",
    "HistoryEntry",
    "Internal",
    "Job",
    "JobEvent",
    "JobInfo",
    "Metric",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Rejected",
    "Reply",
    "TuneDock",
    "TuneDockError",
    "Unauthenticated",
    "Unavailable",
    "Version",
]
