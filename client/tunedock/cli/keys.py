"""`tunedock keys …`."""

from __future__ import annotations

from typing import Annotated

import typer

from .context import JsonFlag, LimitOption, client_of
from .output import emit_json, emit_table, note, plain, when

app = typer.Typer(no_args_is_help=True, help="API keys. Only an admin key may ask.")
ProjectOption = Annotated[str | None, typer.Option("--project", help="Whose key (default: the caller's project).")]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str], typer.Option(help="inference, adapters:read, admin …; may repeat.")],
    project: ProjectOption = None,
    expires_after_s: Annotated[int | None, typer.Option(min=1, help="Seconds of life (default: no end).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. Its secret goes to stdout, this once."""
    with client_of(ctx) as client:
        made = client.keys.create(name, scope, project=project, expires_after_s=expires_after_s)
    if as_json:
        emit_json(plain(made))
        return
    typer.echo(made.key)
    note(f"{made.id} may {', '.join(made.scopes)}; the secret is not shown again")


@app.command("list")
def list_keys(
    ctx: typer.Context, project: ProjectOption = None, limit: LimitOption = 100, as_json: JsonFlag = False
) -> None:
    """List keys, newest first, revoked ones too."""
    with client_of(ctx) as client:
        keys = client.keys.list(project=project, limit=limit)
    if as_json:
        emit_json([plain(key) for key in keys])
        return
    rows = ((k.id, k.name, k.project, ", ".join(k.scopes), when(k.created_at), when(k.revoked_at)) for k in keys)
    emit_table(("KEY", "NAME", "PROJECT", "SCOPES", "CREATED", "REVOKED"), rows)


@app.command()
def revoke(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(help="The id of the key, as `keys list` shows it.")],
    project: ProjectOption = None,
) -> None:
    """Take a key back. Effective within a second on every server."""
    with client_of(ctx) as client:
        client.keys.revoke(key, project=project)
    note(f"{key} is revoked")
