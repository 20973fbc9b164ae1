"""Progress of long calls: a bar on a terminal or in a notebook, plain lines elsewhere. Outside a notebook on stderr."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TextIO

from .curve import curve
from .types import JobEvent

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress import Progress as RichProgress

ProgressOption = bool | Callable[[JobEvent], None]
_PLAIN_INTERVAL_S = 5.0
_CELL_WIDTH = 100  # characters


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
    elif _in_notebook():
        yield _cell(title)
    elif out.isatty():
        with _terminal(title, out) as bar:
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
    """A bar of steps with the newest losses and the time left, and the curve of the training loss above it.

    `draw` shows the whole again in place of what it showed before; `say` leaves a line above it.
    """

    def __init__(
        self, bar: RichProgress, width: int, draw: Callable[[Group], object], say: Callable[[str], object]
    ) -> None:
        self._bar = bar
        self._width = max(20, min(width - 12, 100))
        self._draw = draw
        self._say = say
        self._losses: list[float] = []

    def event(self, event: JobEvent) -> None:
        data = event.data or {}
        if event.type != "metrics" or "step" not in data:
            self._say(event.message)
            return
        self._bar.update(
            self._bar.task_ids[0], completed=data["step"], total=data.get("total_steps"), status=losses_shown(data)
        )
        if isinstance(data.get("train_loss"), float | int):
            self._losses.append(float(data["train_loss"]))
        self._draw(self._picture())

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(*(Text(line) for line in curve(self._losses, self._width)), self._bar)


def _new_bar(title: str) -> RichProgress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = RichProgress(*columns)
    bar.add_task(title, total=None, status="waiting for a trainer")
    return bar


@contextmanager
def _terminal(title: str, out: TextIO) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.live import Live

    bar = _new_bar(title)
    console = Console(file=out, no_color=bool(os.environ.get("NO_COLOR")) or None)
    with Live(bar, console=console, refresh_per_second=8) as live:
        yield _Bar(bar, console.width, live.update, lambda text: console.print(text, highlight=False, markup=False))


def _cell(title: str) -> _Bar:
    """In a notebook's output, drawn again in place. rich's own way needs ipywidgets and shows nothing without them."""
    shown = import_module("IPython.display").display({"text/plain": title}, raw=True, display_id=True)

    def draw(picture: Group) -> None:
        shown.update({"text/plain": _as_text(picture)}, raw=True)

    return _Bar(_new_bar(title), _CELL_WIDTH, draw, print)


def _as_text(picture: Group) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=_CELL_WIDTH, force_jupyter=False, color_system=None).print(picture)
    return out.getvalue()


def losses_shown(data: dict[str, object]) -> str:
    """`train 0.15  valid 0.27`, of what was measured."""
    shown = (("train", "train_loss"), ("valid", "valid_loss"), ("full valid", "full_valid_loss"))
    return "  ".join(f"{name} {data[key]:.3f}" for name, key in shown if isinstance(data.get(key), float | int))


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
