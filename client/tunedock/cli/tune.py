"""`tunedock tune`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .context import JsonFlag, client_of
from .output import emit_json, note, plain

if TYPE_CHECKING:
    from tunedock import Job


def tune(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Training examples, one JSON object per line.")],
    adapter: Annotated[str, typer.Option(help="Name of the adapter; the result is its next version.")],
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Stay until the job has ended.")] = False,
    validation: Annotated[Path | None, typer.Option(help="Examples to measure on, not to train on.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model (default: the one the server has loaded).")] = None,
    method: Annotated[str, typer.Option(help="supervised or dpo.")] = "supervised",
    epochs: Annotated[int | None, typer.Option(min=1, max=50, help="Passes over the data (default: chosen).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=256, help="Examples per step (default: chosen).")] = None,
    learning_rate_multiplier: Annotated[float | None, typer.Option(help="1 = the default rate.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="LoRA rank (default: chosen by the trainer).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same data and seed, same adapter.")] = None,
    knob: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for any other knob (lora.alpha=64); may repeat.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train an adapter on DATA.

    Example: tunedock tune dates.jsonl --adapter dates --watch
    """
    if method not in ("supervised", "dpo"):
        raise typer.BadParameter(f"{method!r} is not a method: use supervised or dpo", param_hint="--method")
    knobs = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
        "rank": rank,
        "seed": seed,
        **knobs_of(knob or ()),
    }
    with client_of(ctx) as client:
        note(f"uploading and checking {data}")
        job = client.tune(data, adapter=adapter, model=model, validation=validation, method=method, **knobs)  # type: ignore[arg-type]
        note(f"started {job.id}")
        if watch:
            job.wait()
        _report(job, as_json, watch)


def _report(job: Job, as_json: bool, watched: bool) -> None:
    if as_json:
        emit_json(plain(job.info))
    else:
        typer.echo(job.model if watched else job.id)
    if watched:
        note(f'{job.model} is ready. Ask it: tunedock chat --model {job.model} "…"')
    else:
        note(f"follow it with: tunedock jobs watch {job.id}")


def knobs_of(settings: Iterable[str]) -> dict[str, Any]:
    """`["lora.rank=8", "promote=never"]` -> `{"lora": {"rank": 8}, "promote": "never"}`."""
    knobs: dict[str, Any] = {}
    for text in settings:
        path, equals, value = text.partition("=")
        *parents, name = path.split(".")
        if not equals or not all((*parents, name)):
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        place = knobs
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _value(value)
    return knobs


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
