"""`tunedock adapters …`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tunedock_api.names import DEFAULT_ALIAS

from .context import AliasOption, JsonFlag, LimitOption, ReasonOption, client_of
from .output import emit_fields, emit_json, emit_table, note, plain, when

if TYPE_CHECKING:
    from tunedock.types import Adapter, Alias, Version

_CELL_CHARS = 48
app = typer.Typer(no_args_is_help=True, help="Adapters, their versions and aliases.")
Name = Annotated[str, typer.Argument(help="Name of the adapter.", metavar="NAME")]
Ref = Annotated[str, typer.Argument(help="A version: support@7, support@canary.", metavar="REF")]


@app.command("list")
def list_adapters(ctx: typer.Context, limit: LimitOption = 100, as_json: JsonFlag = False) -> None:
    """List adapters with where `production` points."""
    with client_of(ctx) as client:
        adapters = client.adapters.list(limit=limit)
    if as_json:
        emit_json([plain(adapter) for adapter in adapters])
        return
    rows = ((a.name, _production(a), a.latest_version, _other_aliases(a), a.base_model) for a in adapters)
    emit_table(("ADAPTER", "PRODUCTION", "LATEST", "OTHER ALIASES", "BASE MODEL"), rows)


@app.command()
def get(ctx: typer.Context, name: Name, limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """Show one adapter with its aliases and versions."""
    with client_of(ctx) as client:
        adapter, versions = client.adapters.get(name), client.adapters.versions(name, limit=limit)
    if as_json:
        emit_json({**plain(adapter), "versions": [plain(version) for version in versions]})
        return
    emit_fields((("adapter", adapter.name), ("base model", adapter.base_model), ("created", when(adapter.created_at))))
    emit_table(("ALIAS", "VERSION", "REVISION"), ((a.alias, a.shown, a.revision) for a in adapter.aliases))
    emit_table(("VERSION", "STATE", "RESIDENCY", "RANK", "DIGEST", "CREATED", "REASON"), map(_version_row, versions))


@app.command()
def promote(
    ctx: typer.Context,
    ref: Ref,
    alias: AliasOption = DEFAULT_ALIAS,
    expected_revision: Annotated[
        int | None, typer.Option(help="Refuse when the alias has moved past this revision.")
    ] = None,
    reason: ReasonOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at a version. Running requests are not touched.

    Example: tunedock adapters promote support@7 --reason "better on refunds"
    """
    with client_of(ctx) as client:
        moved = client.adapters.promote(ref, alias=alias, expected_revision=expected_revision, reason=reason)
    _report_alias(ref.partition("@")[0], moved, as_json)


@app.command()
def rollback(
    ctx: typer.Context,
    name: Name,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Point an alias back at where it was before its last move."""
    with client_of(ctx) as client:
        moved = client.adapters.rollback(name, alias=alias, reason=reason)
    _report_alias(name, moved, as_json)


@app.command()
def history(ctx: typer.Context, name: Name, limit: LimitOption = 50, as_json: JsonFlag = False) -> None:
    """Show who moved which alias when."""
    with client_of(ctx) as client:
        entries = client.adapters.history(name, limit=limit)
    if as_json:
        emit_json([plain(entry) for entry in entries])
        return
    rows = (
        (when(e.created_at), e.alias, " ".join(str(t.version) for t in e.targets), e.revision, e.actor, e.reason)
        for e in entries
    )
    emit_table(("WHEN", "ALIAS", "VERSION", "REVISION", "BY", "REASON"), rows)


@app.command()
def load(ctx: typer.Context, ref: Ref, as_json: JsonFlag = False) -> None:
    """Bring a version into the engine before anybody asks for it."""
    with client_of(ctx) as client:
        version = client.adapters.load(ref)
        _report_version(version, f"in the engine ({version.residency})", as_json)


@app.command()
def pin(ctx: typer.Context, ref: Ref, as_json: JsonFlag = False) -> None:
    """Keep a version in a slot of the engine."""
    with client_of(ctx) as client:
        _report_version(client.adapters.pin(ref), "pinned", as_json)


@app.command()
def unpin(ctx: typer.Context, ref: Ref, as_json: JsonFlag = False) -> None:
    """Let the engine evict a version again."""
    with client_of(ctx) as client:
        _report_version(client.adapters.unpin(ref), "not pinned", as_json)


@app.command()
def diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="A version: support@6.", metavar="REF")],
    after: Annotated[str, typer.Argument(help="Another one: support@7.", metavar="REF")],
    as_json: JsonFlag = False,
) -> None:
    """Show what differs between two versions: configuration, data, metrics, norms."""
    with client_of(ctx) as client:
        found = client.adapters.diff(before, after)
    if as_json:
        emit_json([asdict(one) for one in found])
        return
    rows = ((one.section, one.field, _short(one.before), _short(one.after), _signed(one.change)) for one in found)
    emit_table(("SECTION", "FIELD", before, after, "CHANGE"), rows)


@app.command()
def download(
    ctx: typer.Context,
    ref: Ref,
    into: Annotated[Path | None, typer.Argument(help="Folder to create (default: named after the version).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a version as a plain PEFT folder."""
    with client_of(ctx) as client:
        folder = client.adapters.download(ref, into or Path(ref.replace("@", "-")))
    if as_json:
        emit_json({"folder": str(folder)})
    else:
        typer.echo(folder)


@app.command()
def publish(
    ctx: typer.Context,
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A PEFT adapter folder.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the version is ready; it fails when it is rejected.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Upload a PEFT folder as the next version of an adapter."""
    with client_of(ctx) as client:
        version = client.adapters.publish(name, folder)
        if wait:
            version = client.adapters.verdict(version.ref)
    _report_version(version, version.state, as_json)


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value) if value is not None else "-"
    return text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"


def _signed(change: float | None) -> str | None:
    return None if change is None else f"{change:+g}"


def _production(adapter: Adapter) -> str | None:
    alias = adapter.alias(DEFAULT_ALIAS)
    return alias.shown if alias else None


def _other_aliases(adapter: Adapter) -> str:
    return "  ".join(f"{alias.alias}={alias.shown}" for alias in adapter.aliases if alias.alias != DEFAULT_ALIAS)


def _version_row(version: Version) -> tuple[object, ...]:
    residency = "pinned" if version.pinned else version.residency
    created = when(version.created_at)
    return version.ref, version.state, residency, version.rank, version.digest[:12], created, version.reason


def _report_alias(name: str, alias: Alias, as_json: bool) -> None:
    if as_json:
        emit_json(plain(alias))
    else:
        note(f"{name}@{alias.alias} is now version {alias.shown} (revision {alias.revision})")


def _report_version(version: Version, what: str, as_json: bool) -> None:
    if as_json:
        emit_json(plain(version))
    else:
        note(f"{version.ref} is {what}")
