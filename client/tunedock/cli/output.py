"""Data goes to stdout, everything else to stderr. NO_COLOR and a pipe both mean plain text."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tunedock.types import Wire

_PIPE_WIDTH = 500


def note(message: str) -> None:
    """A message for people."""
    typer.echo(message, err=True)


def emit_json(value: Any) -> None:
    """One JSON document on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def plain(value: Wire) -> dict[str, Any]:
    """The stable JSON form of an answer."""
    return value.model_dump(mode="json", exclude={"raw"})


def console() -> Console:
    """Rich on stdout; wide when piped, so that nothing is cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, no_color=bool(os.environ.get("NO_COLOR")) or None, highlight=False)


def show(table: Table) -> None:
    """Prints without the blanks that fill up the last column."""
    screen = console()
    with screen.capture() as drawn:
        screen.print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns without frames. An empty table still shows its heading."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(("-" if cell is None or cell == "" else str(cell)) for cell in row))
    show(table)


def emit_fields(fields: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in fields:
        table.add_row(name, "-" if value is None or value == "" else str(value))
    show(table)


def when(seconds: int | None) -> str:
    """Local time, or "-"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
