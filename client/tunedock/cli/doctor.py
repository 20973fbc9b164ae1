"""`tunedock doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import typer

from . import checks
from .context import JsonFlag, Settings
from .output import emit_json, show

_SIGNS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}


def doctor(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Check versions, ports, disk, GPU, engine, registry and clock. Exit code 1 when something must be mended."""
    findings = list(all_findings(ctx.ensure_object(Settings).base_url))
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    raise typer.Exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def all_findings(base_url: str | None) -> Iterator[checks.Finding]:
    """In the order in which a person would look."""
    for check in (
        checks.python_and_packages,
        checks.companions,
        checks.gpu,
        checks.home,
        checks.registry,
        checks.ports,
    ):
        yield from check()
    yield from checks.service(base_url)


def _print(findings: list[checks.Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        advice = f"\n→ {finding.advice}" if finding.advice else ""
        table.add_row(_SIGNS[finding.level], finding.subject, escape(finding.detail + advice))
    show(table)
