"""`tunedock chat`: one answer, a conversation, or two models side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .context import JsonFlag, client_of
from .output import console, emit_json, note

if TYPE_CHECKING:
    from tunedock import TuneDock
    from tunedock.types import Reply

Turns = list[dict[str, str]]


def chat(
    ctx: typer.Context,
    message: Annotated[str | None, typer.Argument(help="What to ask; without it, a conversation (or stdin).")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="support, support@7, a base model.")] = None,
    compare: Annotated[str | None, typer.Option(help="A second model; `base` is the base model.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 = always the likeliest token.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a model.

    Example: tunedock chat --model support@canary --compare base "Where is my parcel?"
    """
    options = {
        key: value for key, value in (("max_tokens", max_tokens), ("temperature", temperature)) if value is not None
    }
    start: Turns = [{"role": "system", "content": system}] if system else []
    with client_of(ctx) as client:
        for turn in _turns(message):
            start.append({"role": "user", "content": turn})
            models = [_named(client, model), *([_named(client, compare)] if compare else [])]
            start.append({"role": "assistant", "content": _answer(client, start, models, options, as_json)})


def _turns(message: str | None) -> Iterator[str]:
    """The message; else lines typed by a person; else the whole of stdin."""
    if message is not None:
        yield message
        return
    if not sys.stdin.isatty():
        yield sys.stdin.read().strip()
        return
    note("Ctrl-D ends the conversation")
    while True:
        try:
            line = typer.prompt(">", prompt_suffix=" ", default="", show_default=False)
        except (EOFError, typer.Abort):
            return
        if line:
            yield line


def _named(client: TuneDock, model: str | None) -> str:
    return client.base_model() if model in (None, "base") else str(model)


def _answer(client: TuneDock, turns: Turns, models: list[str], options: dict[str, Any], as_json: bool) -> str:
    """Shows the answers and returns the first one's text."""
    if len(models) == 1 and not as_json:
        return _streamed(client, turns, models[0], options)
    replies = [client.chat(turns, model=model, **options) for model in models]
    if as_json:
        shown = [
            {"model": r.model, "text": r.text, "finish_reason": r.finish_reason, "usage": r.usage.model_dump()}
            for r in replies
        ]
        emit_json(shown if len(shown) > 1 else shown[0])
    else:
        _side_by_side(replies)
    return replies[0].text


def _streamed(client: TuneDock, turns: Turns, model: str, options: dict[str, Any]) -> str:
    pieces, answered_by = [], model
    for delta in client.stream(turns, model=model, **options):
        answered_by = delta.model or answered_by
        pieces.append(delta.text)
        typer.echo(delta.text, nl=False)
    typer.echo()
    if sys.stderr.isatty():
        note(f"({answered_by})")
    return "".join(pieces)


def _side_by_side(replies: list[Reply]) -> None:
    from rich.table import Table

    table = Table(*(reply.model for reply in replies), expand=sys.stdout.isatty(), header_style="bold")
    table.add_row(*(reply.text for reply in replies))
    console().print(table, markup=False)
