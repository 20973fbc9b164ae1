"""Where the numbers of a run go while it goes on: TensorBoard files always, Weights & Biases and MLflow when the job asks."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tunedock_api.errors import BadInput
from tunedock_registry.data.knobs import KNOBS_KEY

from .history import Row, scalars
from .job import Job
from .reporter import Reporter


class Tracker(Protocol):
    """One place. Entering begins the run there, or goes on with it after an earlier try; leaving ends it."""

    def add(self, row: Row) -> None: ...

    def __enter__(self) -> Tracker: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Board:
    """TensorBoard event files; steps after `step` that an earlier try has written are hidden by TensorBoard itself."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: Row) -> None:
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row.step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_error: object) -> None:
        self._writer.close()


class Trackers:
    """All places of one run, as one."""

    def __init__(self, members: list[Tracker]) -> None:
        self._members = members
        self._open = ExitStack()

    def add(self, row: Row) -> None:
        for member in self._members:
            member.add(row)

    def __enter__(self) -> Trackers:
        with ExitStack() as opened:
            for member in self._members:
                opened.enter_context(member)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def trackers_of(job: Job, step: int, reporter: Reporter) -> Trackers:
    """Those that the job asks for. `step`: where the run goes on."""
    members: list[Tracker] = [Board(job.folder / "tensorboard", step)]
    if any(one["type"] == "wandb" for one in job.record.integrations or ()):
        from .track_wandb import wandb_trackers

        members += wandb_trackers(job, reporter)
    if job.knobs.mlflow is not None:
        from .track_mlflow import MlflowTracker

        members.append(MlflowTracker(job, job.knobs.mlflow, reporter))
    return Trackers(members)


def check_trackers(job: Job) -> None:
    """Before any compute. Raises BadInput for a tracker that is not installed here."""
    if any(one["type"] == "wandb" for one in job.record.integrations or ()):
        _check_installed("wandb", "Weights & Biases", "integrations")
    if job.knobs.mlflow is not None:
        _check_installed("mlflow", "MLflow", f"{KNOBS_KEY}.mlflow")


def _check_installed(package: str, title: str, param: str) -> None:
    if find_spec(package) is None:
        raise BadInput(
            f"{title} is not installed where this trainer runs: pip install 'tunedock[{package}]' there, or leave it out.",
            param=param,
        )
