"""`tunedock trainer`: works off the queue of a registry. `tunedock serve` starts one by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from tunedock_registry.imports import leave_out_unused
from tunedock_registry.layout import Home

from . import machine


def trainer(
    home: Annotated[Path | None, typer.Option(help="Home folder; default TUNEDOCK_HOME.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: name, folder or Hugging Face id.")] = None,
    max_lora_rank: Annotated[int, typer.Option(help="The serving engine's rank cap.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass; bounds memory.")] = 2048,
    save_every_s: Annotated[float, typer.Option(help="Seconds between states to resume from.")] = 60.0,
    together_tokens: Annotated[
        int, typer.Option(help="Small jobs train side by side up to this many tokens a step; 0 is off.")
    ] = 1024,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 means all cores.")] = 0,
    nice: Annotated[int, typer.Option(help="Give way to other processes (0 to 19).")] = 0,
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
) -> None:
    """Claim fine-tuning jobs, train them, publish their versions."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    machine.keep_memory_warm()
    machine.spin_briefly()
    machine.be_nice(nice)
    # Heavy imports come after allocator and OpenMP are set up, and never for `--help`.
    import torch

    leave_out_unused(cuda=torch.cuda.is_available())
    from tunedock_registry.models import resolve_model
    from tunedock_registry.registry import Registry

    from .base import load_base
    from .process import Stop, work
    from .run import Limits

    if threads:
        torch.set_num_threads(threads)
    place = Home.resolve(home)
    registry = Registry.open(place)
    local = resolve_model(model, place)
    stop = Stop()
    stop.listen()
    limits = Limits(save_every_s=save_every_s, max_tokens=max_tokens, together_tokens=together_tokens)
    try:
        work(registry, lambda: load_base(local.path, local.model_id, max_rank=max_lora_rank), limits, stop, once=once)
    finally:
        registry.close()
