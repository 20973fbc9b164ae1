"""`tunedock data check` and `tunedock models pull`: what needs the registry's code but no server. Found by entry point."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tunedock_api.errors import BadInput

from .layout import Home

if TYPE_CHECKING:
    from .data.report import DataReport
    from .models.local import Progress, ProgressSink

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]


def check(
    data: Annotated[Path, typer.Argument(help="Training examples, one JSON object per line.")],
    validation: Annotated[Path | None, typer.Option(help="Validation file: is anything in both?")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: counts tokens and shows what is trained.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example in tokens (default: the model's).")] = None,
    masks: Annotated[int, typer.Option(help="Examples shown token by token, with --model.")] = 3,
    home: Annotated[Path | None, typer.Option(help="Where models are kept (default: TUNEDOCK_HOME).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Validate a training file: every error with its line number. Exit code 1 when there is one."""
    from .data.inspection import Inspection, Inspector

    for path in (data, validation):
        _readable(path)
    asked = Inspection(str(data), str(validation) if validation else None, max_length, num_masks=masks)
    report = Inspector(_folder(model, home)).inspect(asked)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _print(data, report)
    raise typer.Exit(0 if report.ok else 1)


def pull(
    model: Annotated[str | None, typer.Argument(help="Folder, Hugging Face id, or nothing for the default.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where models are kept (default: TUNEDOCK_HOME).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a base model, so that `tunedock serve` starts without the network."""
    from .models.resolve import resolve_model

    place = Home.resolve(home).create()
    with _progress() as sink:
        local = resolve_model(model, place, sink)
    if as_json:
        typer.echo(json.dumps({"model": local.model_id, "path": str(local.path)}))
    else:
        typer.echo(local.path)


def fetch(
    repository: Annotated[str, typer.Argument(help="ORG/NAME@COMMIT, the commit as 40 hex digits.")],
    to: Annotated[Path, typer.Option(help="Folder for the two PEFT files.")],
    as_json: JsonFlag = False,
) -> None:
    """Fetch a PEFT LoRA adapter, pinned to a commit; then: tunedock adapters publish NAME FOLDER."""
    from .models.hub import download_adapter

    folder = download_adapter(repository, to)
    typer.echo(json.dumps({"repository": repository, "path": str(folder)}) if as_json else folder)


def _folder(model: str | None, home: Path | None) -> Path | None:
    if model is None:
        return None
    from .models.resolve import resolve_model

    with _progress() as sink:
        return resolve_model(model, Home.resolve(home), sink).path


def _readable(path: Path | None) -> None:
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadInput(f"cannot read {str(path)!r}: {(error.strerror or 'cannot be opened').lower()}.") from error


def _print(path: Path, report: DataReport) -> None:
    """Findings on stdout in the form that editors understand, the rest on stderr."""
    from .data.shown import summary

    refused = report.template.errors if report.template else ()
    for finding in (*report.file.errors, *refused):
        typer.echo(f"{path}:{finding.line}: error: {finding.message}")
    for finding in report.file.warnings:
        typer.echo(f"{path}:{finding.line}: warning: {finding.message}")
    for line in summary(report):
        typer.echo(f"{path}: {line}", err=True)


@contextmanager
def _progress() -> Iterator[ProgressSink]:
    """A bar on a terminal, a line per stage elsewhere."""
    if not sys.stderr.isatty():
        yield _Stages().show
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("model", total=None)

        def show(step: Progress) -> None:
            bar.update(task, description=step.message, completed=step.done, total=step.total)

        yield show


class _Stages:
    """Says every message once."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, step: Progress) -> None:
        if step.message != self._last:
            self._last = step.message
            typer.echo(step.message, err=True)
