"""The command tree and the process edge: every failure ends as one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, cast

import typer
from tunedock_api.errors import TuneDockError

from . import adapters, chat, doctor, jobs, keys, models, tune
from .context import Settings
from .output import note
from .plugins import MissingExtra, add_plugins, missing_extra

USAGE = 2
INTERRUPTED = 130
# By the error table's gRPC status; everything else is 1.
EXIT_CODES = {
    "NOT_FOUND": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "ABORTED": 5,
    "FAILED_PRECONDITION": 5,
    "UNAVAILABLE": 6,
    "RESOURCE_EXHAUSTED": 6,
    "DEADLINE_EXCEEDED": 6,
}

# Typer vendors click and exports only leaves of its usage errors: their base is one step up.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)

app = typer.Typer(
    name="tunedock",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Turn domain data into LoRA adapters and serve all of them from one base model.",
    epilog="Start with: tunedock serve, then: tunedock tune data.jsonl --adapter NAME --watch, then: tunedock chat --model NAME",
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(version("tunedock"))
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    base_url: Annotated[
        str | None, typer.Option(help="Where the service is (default: TUNEDOCK_BASE_URL, or this machine).")
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of a failure.", envvar="TUNEDOCK_DEBUG")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    settings = ctx.ensure_object(Settings)
    settings.base_url, settings.debug = base_url, debug


app.command("tune")(tune.tune)
app.command("chat")(chat.chat)
app.add_typer(jobs.app, name="jobs")
app.add_typer(adapters.app, name="adapters")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command("doctor")(doctor.doctor)
add_plugins(app, models.app, adapters.app)


def run(args: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. This is the only place that catches everything."""
    settings = Settings()
    try:
        command = typer.main.get_command(app)
        code = command.main(list(args), prog_name="tunedock", standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        return _usage(error)
    except TuneDockError as error:
        return _failed(settings, f"{error.message} [{error.code}]", exit_code(error))
    except MissingExtra as error:
        return _failed(settings, str(error), 1)
    except ModuleNotFoundError as error:
        return _failed(settings, missing_extra(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # `tunedock … | head`: nobody reads any more, and that is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _failed(settings, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        return _failed(
            settings, f"unexpected {type(error).__name__}: {error} (run again with --debug and report it)", 1
        )


def exit_code(error: TuneDockError) -> int:
    """The documented exit code of an error."""
    return EXIT_CODES.get(error.kind.grpc_status, 1)


def _usage(error: typer.BadParameter) -> int:
    """Click's message already says what and, where it can, "Did you mean"."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if "Usage:" in message:  # a group without a command: the message is its help
        typer.echo(message, err=True)
        return USAGE
    path = context.command_path if context is not None else "tunedock"
    note(
        f"error: {message} Try: {path} --help"
        if message.endswith((".", "?"))
        else f"error: {message}. Try: {path} --help"
    )
    return USAGE


def _failed(settings: Settings, message: str, code: int) -> int:
    if settings.debug:
        traceback.print_exc()
    note("error: " + " ".join(message.split()))
    return code
