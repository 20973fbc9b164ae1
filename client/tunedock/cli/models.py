"""`tunedock models …`."""

from __future__ import annotations

import typer

from .context import JsonFlag, client_of
from .output import emit_json, emit_table, plain, when

app = typer.Typer(no_args_is_help=True, help="Models that can be asked, and base models on disk.")


@app.command("list")
def list_models(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the base model and every adapter that the server answers for."""
    with client_of(ctx) as client:
        models = client.models()
    if as_json:
        emit_json([plain(model) for model in models])
        return
    rows = ((model.id, model.parent, model.owned_by, when(model.created)) for model in models)
    emit_table(("MODEL", "BASE", "OWNER", "CREATED"), rows)
