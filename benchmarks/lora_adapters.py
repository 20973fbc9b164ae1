"""Random adapters of rank 16 on all seven projections, written as PEFT folders: large enough to answer differently,
small enough that float noise stays noise."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

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
from tunedock_registry.models import DEFAULT_MODEL
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_server.pool import Pinned

RANK, STRENGTH = 16, 0.004


@dataclass(frozen=True)
class Adapter:
    name: str
    folder: Path


def make(folder: Path, model: Path, num: int) -> list[Adapter]:
    base = base_facts(model, DEFAULT_MODEL, RANK)
    return [Adapter(f"line{n:03d}", _write(folder / f"line{n:03d}", base, n)) for n in range(num)]


def publishable(folder: Path, base: BaseFacts, seed: int) -> Pinned:
    """The same with a manifest, for an engine without a server around it."""
    path = _write(folder, base, seed)
    files = {name: _entry(path / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    identity = Identity(files=files, base_model=base.identity)
    manifest = Manifest(
        digest=identity.digest(),
        identity=identity,
        lora=LoraShape(rank=RANK, target_modules=tuple(_targets(base)), num_parameters=1),
        lineage=Lineage(origin="imported"),
    )
    (path / MANIFEST_FILE).write_text(manifest.model_dump_json())
    return Pinned(f"line{seed:03d}@1", manifest.digest, path, RANK)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def _targets(base: BaseFacts) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in base.modules})


def _write(folder: Path, base: BaseFacts, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in base.modules.items():
        a = torch.randn(RANK, inner, generator=generator) / inner**0.5
        b = torch.randn(outer, RANK, generator=generator) * STRENGTH
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": _targets(base), "base_model_name_or_path": base.identity.id,
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder
