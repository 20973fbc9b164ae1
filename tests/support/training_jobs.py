"""Jobs for a tiny base with the real tokenizer, on a registry of their own."""

from __future__ import annotations

import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tunedock_registry.clock import Clock
from tunedock_registry.layout import Home
from tunedock_registry.records import EventRecord, FileRecord, JobRecord, JobSpec
from tunedock_registry.registry import Registry
from tunedock_trainer.base import Base, load_base
from tunedock_trainer.process import Stop, work
from tunedock_trainer.run import Limits

from .datasets import assistant, chat, user
from .training import tiny_path

MODEL = "tiny"


@functools.cache
def speaking_base() -> Base:
    """Two random layers and the whole vocabulary, float32."""
    return load_base(tiny_path(None), MODEL, max_rank=64, dtype=torch.float32)


def chats(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Short questions with a fixed kind of answer, easy to learn."""
    return [
        chat(user(f"Colour number {n}?"), assistant("red" if n % 2 else "blue")) for n in range(start, start + count)
    ]


def preferences(count: int) -> list[dict[str, Any]]:
    return [
        {
            "input": {"messages": [user(f"Colour number {n}?")]},
            "preferred_output": [assistant("red")],
            "non_preferred_output": [assistant("blue")],
        }
        for n in range(count)
    ]


def upload(registry: Registry, rows: Iterable[Any], name: str = "data.jsonl") -> FileRecord:
    lines = [json.dumps(row) + "\n" for row in rows]
    data = "".join(lines).encode()
    file = registry.files.create("default", name, "fine-tune", [data])
    return registry.files.set_result(file.id, "processed", None, {"num_examples": len(lines)})


def queue_job(
    registry: Registry, rows: Iterable[Any], *, hyperparameters: dict[str, Any] | None = None, **changes: Any
) -> JobRecord:
    """A queued job; `type` is the method's, `changes` go into the JobSpec."""
    kind = changes.pop("type", "supervised")
    values = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 4.0, **(hyperparameters or {})}
    method = {"type": kind, kind: {"hyperparameters": values}}
    spec = {"model": MODEL, "adapter": "colours", "seed": 7, "method": method, **changes}
    file = spec.pop("training_file", None) or upload(registry, rows).id
    job = registry.jobs.create("default", JobSpec(training_file=file, **spec))
    return registry.jobs.mark_validated(job.id)


def open_home(root: Path) -> Registry:
    return Registry.open(Home(root))


def run_all(registry: Registry, limits: Limits | None = None, stop: Stop | None = None) -> None:
    """Works off the queue in this process."""
    work(registry, speaking_base, limits or Limits(), stop or Stop(), once=True)


def finished(registry: Registry, job: JobRecord) -> JobRecord:
    """The job as it is now."""
    return registry.jobs.get("default", job.id)


def events(registry: Registry, job: JobRecord) -> list[EventRecord]:
    return list(registry.jobs.events_since(job.id))


def child_work(home: Path, ahead_s: float, hurry: float, save_every_s: float, once: bool) -> None:
    """A trainer in a process of its own; with `once` it ends when no job waits. Its wall clock is `ahead_s` ahead and its monotonic clock `hurry` times as fast,
    so that delays and leases of other workers are over soon."""
    torch.set_num_threads(1)
    clock = Clock(wall=lambda: time.time() + ahead_s, monotonic=lambda: time.monotonic() * hurry)
    registry = Registry.open(Home(home), clock=clock)
    stop = Stop()
    stop.listen()
    work(registry, speaking_base, Limits(save_every_s=save_every_s), stop, once=once)
    registry.close()


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "support.training_jobs",
        "transformers.models.llama.modeling_llama",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
    ]
)


def start_child(
    registry: Registry, *, ahead_s: float = 0.0, hurry: float = 1.0, save_every_s: float = 0.1, once: bool = True
) -> BaseProcess:
    """Forked from a process that has imported everything already: up in a fraction of a second."""
    tiny_path(None)
    child = _FORKS.Process(
        target=child_work, args=(registry.home.root, ahead_s, hurry, save_every_s, once), daemon=True
    )
    child.start()
    return child


def wait_for(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Polls until `what` holds. Raises TimeoutError."""
    end = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
