"""Commands that live with the code they run, found by entry point (`tunedock.commands`).

An entry point `serve` is a command, `models.pull` a command of the group `models`. Its object is a function for Typer or
a Typer app. Nothing is imported until the command is called, so `--help` stays fast and the base install complete.
"""

from __future__ import annotations

import shutil
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

GROUP = "tunedock.commands"
# name -> (help, extras that bring it). Listed here so that `--help` names them where they are not installed.
KNOWN = {
    "serve": ("Serve the base model and every adapter (REST, gRPC, trainer).", "server,trainer,{engine}"),
    "trainer": ("Run a trainer for a registry that a server elsewhere uses.", "trainer"),
    "models.pull": ("Fetch a base model into the home folder.", "server,trainer,{engine}"),
    "data.check": ("Validate a training file without a server.", "registry"),
    "plan": ("What fits: bytes of a slot by rank, slots and context for the memory there is.", "registry"),
    "adapters.merge": ("Merge several versions into a new one.", "trainer"),
    "adapters.convert": ("Make DoRA, PiSSA and other kinds of LoRA servable, with the measured error.", "trainer"),
    "adapters.fetch": ("Fetch a PEFT LoRA folder from Hugging Face, pinned to a commit.", "registry"),
}
# Top-level module -> extra, for a failure deep inside a command.
_EXTRA_OF = {"vllm": "server,{engine}", "torch": "trainer", "peft": "trainer", "fastapi": "server,{engine}"}
_PASS_ALL = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class MissingExtra(Exception):
    """A command whose code is not installed; the message is the pip line."""


def add_plugins(app: typer.Typer, models: typer.Typer, adapters: typer.Typer) -> None:
    """Adds every known command, and whatever else other packages offer."""
    data = typer.Typer(no_args_is_help=True, help="Training data.")
    groups = {"": app, "models": models, "adapters": adapters, "data": data}
    offered = {point.name for point in entry_points(group=GROUP)}
    for name in [*KNOWN, *sorted(offered - set(KNOWN))]:
        group, _, verb = name.rpartition(".")
        if group in groups:
            text = KNOWN[name][0] if name in KNOWN else f"Provided by a plug-in ({name})."
            groups[group].command(verb, help=text, context_settings=_PASS_ALL, add_help_option=False)(_runner(name))
    app.add_typer(data, name="data")


def _runner(name: str) -> Any:
    def command(ctx: typer.Context) -> None:
        point = next(iter(entry_points(group=GROUP, name=name)), None)
        raise typer.Exit(run_entry_point(point, name, ctx.args))

    return command


def run_entry_point(point: EntryPoint | None, name: str, args: list[str]) -> int:
    """Loads and runs the command. Raises MissingExtra when it, or what it imports, is not installed."""
    if point is None:
        raise MissingExtra(_pip_line(name, "it is not installed"))
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        raise MissingExtra(_pip_line(name, f"{error.name} is not installed")) from error
    if not isinstance(loaded, typer.Typer):
        single = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        single.command()(loaded)
        loaded = single
    shown = "tunedock " + name.replace(".", " ")
    code = typer.main.get_command(loaded).main(args, prog_name=shown, standalone_mode=False)
    return code if isinstance(code, int) else 0


def missing_extra(error: ModuleNotFoundError) -> str:
    """One line for a package that turned out to be missing while a command ran."""
    top = (error.name or "").partition(".")[0]
    if top not in _EXTRA_OF:
        return (
            f"the Python package {top!r} is not installed: reinstall TuneDock (pip install --force-reinstall tunedock)."
        )
    return f"{top} is not installed: {_install(_EXTRA_OF[top])}"


def _pip_line(name: str, why: str) -> str:
    extras = KNOWN[name][1] if name in KNOWN else "server"
    return f"`tunedock {name.replace('.', ' ')}` needs more than the base install ({why}): {_install(extras)}"


def _install(extras: str) -> str:
    engine = "gpu" if shutil.which("nvidia-smi") else "cpu"
    return f"pip install 'tunedock[{extras.format(engine=engine)}]'"
