"""`tunedock jobs …`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .context import JsonFlag, LimitOption, client_of
from .output import emit_fields, emit_json, emit_table, note, plain, when

if TYPE_CHECKING:
    from tunedock.types import JobEvent, JobInfo

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")
JobId = Annotated[str, typer.Argument(help="ftjob-…, as `tunedock tune` prints it.", metavar="JOB")]


@app.command("list")
def list_jobs(ctx: typer.Context, limit: LimitOption = 20, as_json: JsonFlag = False) -> None:
    """List jobs, newest first."""
    with client_of(ctx) as client:
        jobs = [job.info for job in client.jobs.list(limit=limit)]
    if as_json:
        emit_json([plain(job) for job in jobs])
        return
    rows = ((job.id, job.status, job.fine_tuned_model, job.trained_tokens, when(job.created_at)) for job in jobs)
    emit_table(("JOB", "STATUS", "RESULT", "TOKENS", "CREATED"), rows)


@app.command()
def get(ctx: typer.Context, job: JobId, as_json: JsonFlag = False) -> None:
    """Show one job."""
    with client_of(ctx) as client:
        _show(client.jobs.get(job).info, as_json)


@app.command()
def watch(ctx: typer.Context, job: JobId, as_json: JsonFlag = False) -> None:
    """Follow a job to its end. Exit code 1 when it failed.

    With --json, one event per line on stdout.
    """
    with client_of(ctx) as client:
        handle = client.jobs.get(job)
        handle.wait(progress=_print_event if as_json else True)
    if not as_json:
        typer.echo(handle.model)


@app.command()
def events(ctx: typer.Context, job: JobId, as_json: JsonFlag = False) -> None:
    """Print what a job has logged so far, oldest first."""
    with client_of(ctx) as client:
        for event in client.jobs.get(job).events():
            if as_json:
                _print_event(event)
            else:
                typer.echo(f"{when(event.created_at)}  {event.message}")


@app.command()
def cancel(ctx: typer.Context, job: JobId, as_json: JsonFlag = False) -> None:
    """Stop a job; its checkpoints stay."""
    with client_of(ctx) as client:
        info = client.jobs.get(job).cancel()
    note(f"{info.id} is {info.status}")
    if as_json:
        emit_json(plain(info))


def _print_event(event: JobEvent) -> None:
    emit_json(plain(event))


def _show(job: JobInfo, as_json: bool) -> None:
    if as_json:
        emit_json(plain(job))
        return
    hyperparameters = "  ".join(f"{key}={value}" for key, value in (job.hyperparameters or {}).items())
    emit_fields(
        (
            ("job", job.id),
            ("status", job.status),
            ("error", job.error.message if job.error else None),
            ("base model", job.model),
            ("result", job.fine_tuned_model),
            ("training file", job.training_file),
            ("validation file", job.validation_file),
            ("hyperparameters", hyperparameters),
            ("trained tokens", job.trained_tokens),
            ("created", when(job.created_at)),
            ("finished", when(job.finished_at)),
        )
    )
