"""Random adapters of rank 16 on all seven projections, written as PEFT folders: large enough to answer differently,
small enough that float noise stays noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tunedock_registry.models import DEFAULT_MODEL
from tunedock_registry.models.facts import base_facts

RANK, STRENGTH = 16, 0.004


@dataclass(frozen=True)
class Adapter:
    name: str
    folder: Path


def make(folder: Path, model: Path, num: int) -> list[Adapter]:
    return [_write(folder / f"line{number:03d}", model, number) for number in range(num)]


def _write(folder: Path, model: Path, seed: int) -> Adapter:
    base = base_facts(model, DEFAULT_MODEL, RANK)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in base.modules.items():
        a = torch.randn(RANK, inner, generator=generator) / inner**0.5
        b = torch.randn(outer, RANK, generator=generator) * STRENGTH
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in base.modules})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": targets, "base_model_name_or_path": DEFAULT_MODEL,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Adapter(folder.name, folder)
