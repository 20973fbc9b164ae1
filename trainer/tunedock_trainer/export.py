"""The adapter as it is served: plain PEFT files with the scaling folded into B, and how to read them back.

B is multiplied by the scaling in fp32 and then rounded to the dtype that adapters are served in; `lora_alpha` equals `r`, so
every loader gets scaling 1 and rounds nothing again (vLLM folds α/r in the adapter's dtype otherwise).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .adapter import Adapter, ModuleLora

PREFIX = "base_model.model."


def export_config(modules: Iterable[ModuleLora], base_id: str) -> bytes:
    """`adapter_config.json`: α = r for every module, ranks that differ in both patterns. The registry rewrites it."""
    ranks = {module.name: module.rank for module in modules}
    rank = max(ranks.values())
    pattern = {name: value for name, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_id,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return json.dumps(config, sort_keys=True, indent=2).encode()


def export_weights(adapter: Adapter, path: Path, dtype: torch.dtype) -> None:
    """Writes A and the folded B of every module, sorted by name."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in adapter.served().items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.to(dtype).contiguous().cpu()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.to(dtype).contiguous().cpu()
    save_file(dict(sorted(tensors.items())), path)


def read_weights(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name → (A, B) of an exported file."""
    with safe_open(path, framework="pt") as file:
        tensors = {key.removeprefix(PREFIX): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    names = sorted({key.rpartition(".lora_")[0] for key in tensors})
    return {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}


def served_adapter(
    path: Path, groups: Iterable[tuple[str, ...]], *, dtype: torch.dtype, device: torch.device | str
) -> Adapter:
    """An adapter that computes with exactly the numbers in the exported file."""
    tensors = read_weights(path)
    modules = [
        ModuleLora(name, a.shape[1], b.shape[0], rank=a.shape[0], scaling=1.0) for name, (a, b) in tensors.items()
    ]
    adapter = Adapter(groups, modules, dtype=dtype, device=device)
    adapter.load(tensors, folded=False)
    return adapter
