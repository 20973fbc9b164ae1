"""`tunedock plan`: what fits, before anything is started or bought."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .layout import Home


def plan(
    model: Annotated[str | None, typer.Option(help="Base model: name, folder or Hugging Face id.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory to plan with; default: this machine's.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Adapters in one batch (--max-loras of serve).")] = 8,
    max_lora_rank: Annotated[int, typer.Option(min=1, help="The engine's rank cap.")] = 32,
    home: Annotated[Path | None, typer.Option(help="Where models are kept (default: TUNEDOCK_HOME).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Bytes of a slot by rank, how many slots there could be, and the KV cache that is left."""
    from .models.budget import RANKS, budget, model_cost
    from .models.facts import base_facts
    from .models.resolve import resolve_model

    local = resolve_model(model, Home.resolve(home))
    cost = model_cost(local.path, base_facts(local.path, local.model_id, max_lora_rank))
    memory = int(memory_gib * 2**30) if memory_gib else _machine_bytes()
    fits = budget(cost, memory, slots, max_lora_rank)
    by_rank = {rank: cost.slot_bytes(rank) for rank in RANKS}
    if as_json:
        typer.echo(json.dumps({"model": local.model_id, **asdict(cost), "slot_bytes": by_rank, **asdict(fits)}))
        return
    typer.echo(f"{local.model_id}: weights {_mib(cost.weights_bytes)}, {cost.kv_bytes_per_token:,} bytes of KV a token")
    for rank, size in by_rank.items():
        typer.echo(f"  rank {rank:>3}: {_mib(size)} a slot{'   <- --max-lora-rank' if rank == max_lora_rank else ''}")
    typer.echo(
        f"{_mib(memory)}: {slots} slots of rank {max_lora_rank} take {_mib(fits.slots_bytes)} and leave {fits.kv_tokens:,} "
        f"tokens of KV cache ({fits.contexts:.1f} contexts of {cost.max_model_len:,}); {fits.most_slots:,} slots at most."
    )


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
