"""Random adapters of rank 16 on all seven projections, written as PEFT folders: large enough to answer differently,
small enough that float noise stays noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
from tunedock_api.names import DEFAULT_PROJECT
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_registry.registry import Registry
from tunedock_server.pool import Pinned

from .servers import MAX_RANK, model_path

RANK, STRENGTH = 16, 0.004


@dataclass(frozen=True)
class Adapter:
    name: str
    folder: Path


def make(folder: Path, model: Path, num: int, rank: int = RANK, prefix: str = "line") -> list[Adapter]:
    base = base_facts(model, DEFAULT_MODEL, RANK)
    names = [f"{prefix}{n:03d}" for n in range(num)]
    return [Adapter(name, _write(folder / name, base, n, rank)) for n, name in enumerate(names)]


def register(home: Home, adapters: Sequence[Adapter]) -> list[str]:
    """Puts them into the registry as ready versions, without a server. Returns their references.

    No alias points to them: a server would take those into memory when it starts.
    """
    facts = base_facts(model_path(), DEFAULT_MODEL, MAX_RANK)
    parts = ManifestParts(lineage=Lineage(origin="imported"))
    registry = Registry.open(home.create())
    try:
        for adapter in adapters:
            source = prepare(adapter.folder / CONFIG_FILE, adapter.folder / WEIGHTS_FILE, facts, parts)
            version = registry.adapters.publish(DEFAULT_PROJECT, adapter.name, source, origin="imported")
            for state in ("verifying", "ready"):
                registry.adapters.set_state(version.id, state)
    finally:
        registry.close()
    return [f"{adapter.name}@1" for adapter in adapters]


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


def _write(folder: Path, base: BaseFacts, seed: int, rank: int = RANK) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in base.modules.items():
        a = torch.randn(rank, inner, generator=generator) / inner**0.5
        b = torch.randn(outer, rank, generator=generator) * STRENGTH
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
        "target_modules": _targets(base), "base_model_name_or_path": base.identity.id,
    }  # fmt: skip
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder
