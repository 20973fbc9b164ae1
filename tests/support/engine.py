"""Adapters written as published versions, and engines to serve them: real vLLM on the default model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tunedock_api.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Identity,
    Lineage,
    LoraShape,
    Manifest,
)
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_server.engine.start import create_engine
from tunedock_server.pool import EnginePool, EngineSettings, Pinned

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODEL_ID = "smollm2-135m-instruct"


def default_model() -> Path:
    """The converted default model; `make setup` and the first `tunedock models pull` put it there."""
    home = Path(os.environ.get("TUNEDOCK_HOME") or Path(__file__).resolve().parents[2] / ".home")
    return home / "models" / MODEL_ID


def model_facts(model: Path, max_rank: int = 16) -> BaseFacts:
    return base_facts(model, MODEL_ID, max_rank)


def random_tensors(
    base: BaseFacts, seed: int, rank: int = 8, strength: float = 0.02, targets: Sequence[str] = LINEAR
) -> dict[str, torch.Tensor]:
    """PEFT names -> bf16 tensors. `strength` is the size of B's entries: 0.02 changes answers, 0.002 log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in base.modules.items():
        if name.rpartition(".")[2] in targets:
            a = torch.randn(rank, inner, generator=generator) / inner**0.5
            b = torch.randn(outer, rank, generator=generator) * strength
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    return tensors


def write_version(
    root: Path,
    tensors: Mapping[str, torch.Tensor],
    base: BaseFacts,
    public: str,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] = LINEAR,
) -> Pinned:
    """Writes `root/sha256-<digest>/` as publish does and returns what a request would be pinned to."""
    draft = root / f"draft-{public.replace('@', '-')}"
    draft.mkdir(parents=True)
    save_file(dict(tensors), draft / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": list(targets),
        "bias": "none",
        "base_model_name_or_path": base.identity.id,
    }
    (draft / CONFIG_FILE).write_text(json.dumps(config))
    identity = Identity(
        files={name: _entry(draft / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}, base_model=base.identity
    )
    manifest = Manifest(
        digest=identity.digest(),
        identity=identity,
        lora=LoraShape(
            rank=rank, target_modules=tuple(targets), num_parameters=sum(t.numel() for t in tensors.values())
        ),
        lineage=Lineage(origin="imported"),
    )
    (draft / MANIFEST_FILE).write_text(manifest.model_dump_json())
    final = draft.rename(root / f"sha256-{manifest.digest}")
    return Pinned(public, manifest.digest, final, rank)


def random_version(
    root: Path, base: BaseFacts, public: str, seed: int, rank: int = 8, strength: float = 0.02
) -> Pinned:
    return write_version(root, random_tensors(base, seed, rank, strength), base, public, rank=rank)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def engine_settings(model: Path, **changes: Any) -> EngineSettings:
    """Small: 3 slots, 6 host places, 256 MiB of KV cache, 1,024 tokens of context."""
    values: dict[str, Any] = {
        "model_path": model,
        "model_id": MODEL_ID,
        "max_loras": 3,
        "max_cpu_loras": 6,
        "max_lora_rank": 16,
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "kv_cache_bytes": 256 << 20,
        **changes,
    }
    return EngineSettings(**values)


@asynccontextmanager
async def running(settings: EngineSettings) -> AsyncIterator[EnginePool]:
    """A started engine, stopped whatever happens."""
    engine = create_engine(settings)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()
