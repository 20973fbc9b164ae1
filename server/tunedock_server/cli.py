"""`tunedock serve`. Checks what can be checked in a second before anything heavy is imported."""

from __future__ import annotations

import logging
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tunedock_api.errors import BadInput
from tunedock_registry.imports import leave_out_unused
from tunedock_registry.layout import Home

from .listen import bind
from .settings import LOOPBACK, Settings

if TYPE_CHECKING:
    from tunedock_registry.registry import Registry

log = logging.getLogger("tunedock")


def serve(
    model: Annotated[
        str | None, typer.Option(help="Base model: folder or Hugging Face id [default: smollm2-135m-instruct].")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="REST port; 0 takes a free one [default: 8000].")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 takes a free one [default: 8001].")] = None,
    grpc_tls_cert: Annotated[str | None, typer.Option(help="PEM certificate: gRPC with TLS.")] = None,
    grpc_tls_key: Annotated[str | None, typer.Option(help="PEM key of that certificate.")] = None,
    grpc_tls_client_ca: Annotated[
        str | None, typer.Option(help="PEM file: gRPC callers must show its certificate.")
    ] = None,
    home: Annotated[str | None, typer.Option(help="Where everything is kept [default: TUNEDOCK_HOME].")] = None,
    trainer: Annotated[
        bool | None, typer.Option("--trainer/--no-trainer", help="Run a trainer beside the server.")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(help="Slots: distinct adapters in one batch.")] = None,
    max_cpu_loras: Annotated[int | None, typer.Option(help="Adapters kept in host memory.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="Highest rank that a slot holds.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest context in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of GPU memory to use.")] = None,
    tool_parser: Annotated[str | None, typer.Option(help="vLLM's parser for tool calls.")] = None,
    insecure_no_auth: Annotated[
        bool | None, typer.Option("--insecure-no-auth", help="Serve a non-loopback address without authentication.")
    ] = None,
) -> None:
    """Serve the base model and every adapter: REST, gRPC, and a trainer beside them."""
    given = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(given)
    check_exposure(settings)
    _log_to_stderr()
    run(settings)


def read_settings(given: dict[str, Any]) -> Settings:
    """Flags over environment over defaults. Raises BadInput that names the field."""
    from pydantic import ValidationError

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise BadInput(f"{name}: {first['msg']}. Set it with --{name.replace('_', '-')}.", param=name) from None


def check_exposure(settings: Settings) -> None:
    """Raises BadInput for an open server that nobody asked for in so many words."""
    if settings.host in LOOPBACK or settings.authenticated():
        return
    if not settings.insecure_no_auth:
        raise BadInput(
            f"Refusing to serve {settings.host} without authentication: set TUNEDOCK_API_KEY, or pass "
            "--insecure-no-auth if the network is trusted.",
            param="host",
        )
    typer.echo(f"warning: anybody who reaches {settings.host} can use and change this server.", err=True)


def run(settings: Settings) -> None:
    """Port, home and model first: each failure is one line before the engine's start."""
    sock = bind(settings.host, settings.port)
    home = Home.resolve(settings.home).create()
    from tunedock_registry.models.resolve import resolve_model

    local = resolve_model(settings.model, home, lambda step: log.info(step.message))
    if find_spec("vllm") is None:
        raise ModuleNotFoundError("vllm is not installed", name="vllm")
    from .engine.environment import on_cpu
    from .engine.start import begin_imports, create_engine

    leave_out_unused(cuda=not on_cpu())
    engine = settings.engine(str(local.path), local.model_id)
    begin_imports(engine)
    from tunedock_registry.registry import Registry

    from .app import Server
    from .run import run_loop, serve

    registry = Registry.open(home, database_url=settings.database_url)
    try:
        pool = create_engine(engine)
        trainer = _trainer(settings, home, registry)
        inspector = _inspector(local.path)
        server = Server(
            settings, registry, pool, local.model_id, trainer=trainer, inspector=inspector, model_path=local.path
        )
        run_loop(serve(server, sock, _announce))
    finally:
        registry.close()


def _log_to_stderr() -> None:
    """Our own news, and the warnings of everybody else."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("tunedock", "tunedock_server", "tunedock_registry"):
        logging.getLogger(name).setLevel(logging.INFO)


def _announce(line: str) -> None:
    typer.echo(line)


def _inspector(model: Path) -> Any:
    """Counts tokens where the model has the one file that needs no torch; checks the text alone elsewhere."""
    from tunedock_registry.data.isolation import IsolatedInspector

    return IsolatedInspector(model if (model / "tokenizer.json").is_file() else None)


def _trainer(settings: Settings, home: Home, registry: Registry) -> Any:
    """The supervisor of the trainer process; None when it is not wanted or not installed.

    It gets the model's name, not its folder: both processes must call the base by the same id.
    """
    from .supervisor import Supervisor

    if not settings.trainer:
        return None
    if find_spec("peft") is None or find_spec("tunedock_trainer") is None:
        log.warning("no trainer is started: its packages are missing (pip install 'tunedock[trainer]')")
        return None
    command = [sys.executable, "-m", "tunedock_trainer", "--home", str(home.root), "--model", settings.model]
    command += ["--max-lora-rank", str(settings.max_lora_rank), "--nice", str(settings.trainer_nice)]

    def release(pid: int) -> None:
        """Trainers name themselves by host and process id; a dead one's jobs need not wait for their leases to end."""
        registry.jobs.release_worker(f"{socket.gethostname()}-{pid}")

    return Supervisor(command, parent_pid=os.getpid(), ended=release)
