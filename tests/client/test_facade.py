"""`TuneDock` is `AsyncTuneDock` without `await`: the same methods with the same parameters."""

from __future__ import annotations

import inspect

import pytest
from tunedock import sync
from tunedock.adapters import AsyncAdapters
from tunedock.client import AsyncTuneDock
from tunedock.files import AsyncFiles
from tunedock.jobs import AsyncJob, AsyncJobs
from tunedock.keys import AsyncKeys

PAIRS = [
    (AsyncTuneDock, sync.TuneDock),
    (AsyncFiles, sync.Files),
    (AsyncJobs, sync.Jobs),
    (AsyncJob, sync.Job),
    (AsyncAdapters, sync.Adapters),
    (AsyncKeys, sync.Keys),
]
RENAMED = {"aclose": "close"}


def public(kind: type) -> dict[str, list[str]]:
    """Public method -> its parameters."""
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {
        RENAMED.get(name, name): [str(p).replace("op.", "") for p in inspect.signature(method).parameters.values()]
        for name, method in methods
        if not name.startswith("_")
    }


@pytest.mark.parametrize(("asynchronous", "blocking"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_clients_have_the_same_methods_and_parameters(asynchronous: type, blocking: type) -> None:
    assert public(asynchronous) == public(blocking)


def test_both_clients_are_made_alike() -> None:
    assert inspect.signature(AsyncTuneDock.__init__) == inspect.signature(sync.TuneDock.__init__)


def test_every_public_method_is_documented_or_speaks_for_itself() -> None:
    plain = {"get", "list", "delete", "aclose", "unpin", "refresh", "pause", "resume", "checkpoints", "close"}
    silent = [
        f"{kind.__name__}.{name}"
        for kind, _ in PAIRS
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in plain and not inspect.getdoc(method)
    ]
    assert silent == []
