"""Progress of long calls: a bar on a terminal or in a notebook, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from .types import JobEvent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

ProgressOption = bool | Callable[[JobEvent], None]
_PLAIN_INTERVAL_S = 5.0


class Progress(Protocol):
    """Something that shows how a job goes on."""

    def event(self, event: JobEvent) -> None: ...


@contextmanager
def reporter(option: ProgressOption, title: str, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yields what `option` asks for: a bar, plain lines, a callable's adapter, or silence."""
    out = stream or sys.stderr
    if callable(option):
        yield _Callback(option)
    elif not option:
        yield _Callback(lambda _event: None)
    elif out.isatty() or _in_notebook():
        with _bar(title, out) as bar:
            yield bar
    else:
        yield _Lines(out)


class _Callback:
    def __init__(self, call: Callable[[JobEvent], None]) -> None:
        self._call = call

    def event(self, event: JobEvent) -> None:
        self._call(event)


class _Lines:
    """One line per message; steps at most every few seconds, the last one always."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = -_PLAIN_INTERVAL_S

    def event(self, event: JobEvent) -> None:
        data = event.data or {}
        is_step = event.type == "metrics"
        due = time.monotonic() - self._last >= _PLAIN_INTERVAL_S
        if is_step and not due and data.get("step") != data.get("total_steps"):
            return
        if is_step:
            self._last = time.monotonic()
        print(event.message, file=self._out, flush=True)


class _Bar:
    """A Rich bar of steps with the newest losses and the time left."""

    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich = rich
        self._task = task

    def event(self, event: JobEvent) -> None:
        data = event.data or {}
        if event.type == "metrics" and "step" in data:
            self._rich.update(
                self._task, completed=data["step"], total=data.get("total_steps"), status=losses_shown(data)
            )
        else:
            self._rich.console.print(event.message, highlight=False, markup=False)


@contextmanager
def _bar(title: str, out: TextIO) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=out, no_color=bool(os.environ.get("NO_COLOR")) or None)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as rich:
        yield _Bar(rich, rich.add_task(title, total=None, status="waiting for a trainer"))


def losses_shown(data: dict[str, object]) -> str:
    """`train 0.15  valid 0.27`, of what was measured."""
    shown = (("train", "train_loss"), ("valid", "valid_loss"), ("full valid", "full_valid_loss"))
    return "  ".join(f"{name} {data[key]:.3f}" for name, key in shown if isinstance(data.get(key), float))


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
