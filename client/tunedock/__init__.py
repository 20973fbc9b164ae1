"""TuneDock's Python client: tune adapters, move them between versions, ask them. Light: no torch, no vLLM.

Names are loaded when they are first used, so that the `tunedock` command starts without the SDK.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunedock_api.errors import BadInput as BadInput
    from tunedock_api.errors import Conflict as Conflict
    from tunedock_api.errors import DeadlineExceeded as DeadlineExceeded
    from tunedock_api.errors import Internal as Internal
    from tunedock_api.errors import NotFound as NotFound
    from tunedock_api.errors import Overloaded as Overloaded
    from tunedock_api.errors import PermissionDenied as PermissionDenied
    from tunedock_api.errors import Rejected as Rejected
    from tunedock_api.errors import TuneDockError as TuneDockError
    from tunedock_api.errors import Unauthenticated as Unauthenticated
    from tunedock_api.errors import Unavailable as Unavailable

    from .client import AsyncTuneDock as AsyncTuneDock
    from .jobs import AsyncJob as AsyncJob
    from .sync import Job as Job
    from .sync import TuneDock as TuneDock
    from .types import Adapter as Adapter
    from .types import Alias as Alias
    from .types import Checkpoint as Checkpoint
    from .types import Delta as Delta
    from .types import FileInfo as FileInfo
    from .types import HistoryEntry as HistoryEntry
    from .types import JobEvent as JobEvent
    from .types import JobInfo as JobInfo
    from .types import Metric as Metric
    from .types import Reply as Reply
    from .types import Version as Version

_HOMES = {
    "tunedock_api.errors": (
        "BadInput",
        "Conflict",
        "DeadlineExceeded",
        "Internal",
        "NotFound",
        "Overloaded",
        "PermissionDenied",
        "Rejected",
        "TuneDockError",
        "Unauthenticated",
        "Unavailable",
    ),
    "tunedock.client": ("AsyncTuneDock",),
    "tunedock.jobs": ("AsyncJob",),
    "tunedock.sync": ("Job", "TuneDock"),
    "tunedock.types": (
        "Adapter",
        "Alias",
        "Checkpoint",
        "Delta",
        "FileInfo",
        "HistoryEntry",
        "JobEvent",
        "JobInfo",
        "Metric",
        "Reply",
        "Version",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tunedock' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
