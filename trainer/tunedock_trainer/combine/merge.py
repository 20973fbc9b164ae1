"""Several adapters into one, by PEFT's `add_weighted_adapter`.

`linear`, `ties`, `dare_linear`, `dare_ties` and `magnitude_prune` work on A and B apart, which is quick and inexact (TIES:
arXiv 2306.01708, DARE: arXiv 2311.03099); `cat` is the exact weighted sum at the sum of the ranks; `svd` is the best
approximation of that sum at the highest rank. The distance from the exact weighted sum is measured for every method.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tunedock_api.errors import BadInput

from ..export import read_weights
from .lowrank import Pairs, relative_distance

Method = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "cat", "svd"]
METHODS: tuple[str, ...] = get_args(Method)
_EQUAL_RANKS = {"linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
_PRUNING = {"ties", "dare_linear", "dare_ties", "magnitude_prune"}


@dataclass(frozen=True)
class Merged:
    """`relative_distance` is from the exact weighted sum of the parents' changes; pruning methods mean to be away from it."""

    pairs: Pairs
    relative_distance: float


@dataclass(frozen=True)
class MergePlan:
    """`density` is the share of values that pruning methods keep; the other methods ignore it."""

    weights: tuple[float, ...]
    method: Method = "linear"
    density: float = 0.5

    def check(self, folders: Sequence[Path]) -> None:
        """Raises BadInput for a plan that cannot be carried out on `folders`."""
        if len(folders) < 2:
            raise BadInput("merge: name at least two versions.", param="sources")
        if len(self.weights) != len(folders):
            raise BadInput(f"merge: {len(folders)} versions need {len(folders)} weights, not {len(self.weights)}.")
        if self.method not in METHODS:
            raise BadInput(
                f"merge: method {self.method!r} is unknown; use one of {', '.join(METHODS)}.", param="method"
            )
        if not 0 < self.density <= 1:
            raise BadInput("merge: density must be above 0 and at most 1.", param="density")
        ranks = {str(folder.name): _rank(folder) for folder in folders}
        if self.method in _EQUAL_RANKS and len(set(ranks.values())) > 1:
            raise BadInput(
                f"merge: {self.method} needs equal ranks, these are {sorted(set(ranks.values()))}: use cat or svd.",
                param="method",
            )


def merge(base_path: Path, folders: Sequence[Path], plan: MergePlan, dtype: torch.dtype) -> Merged:
    """Merges PEFT folders of one base model; the result's scaling is folded into B. Random methods use seed 0.

    Memory: the base model and the adapters in float32.
    """
    plan.check(folders)
    pairs = _as_stored(_merged_by_peft(base_path, folders, plan), dtype)
    exact = _weighted_sum([_scaled(folder) for folder in folders], plan.weights)
    return Merged(pairs, relative_distance(exact, pairs))


def _merged_by_peft(base_path: Path, folders: Sequence[Path], plan: MergePlan) -> Pairs:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = [f"source{number}" for number in range(len(folders))]
    # PEFT keeps the merged adapter in the dtype of the base it hangs on: float32 rounds nothing.
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    options: dict[str, Any] = {"density": plan.density} if plan.method in _PRUNING else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_weighted_adapter(names, list(plan.weights), "merged", combination_type=plan.method, **options)
    with tempfile.TemporaryDirectory() as target:
        model.save_pretrained(target, selected_adapters=["merged"], save_embedding_layers=False)
        return _scaled(Path(target) / "merged")


def _scaled(folder: Path) -> Pairs:
    """A and B of a PEFT folder with its scaling folded into B."""
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs = read_weights(folder / "adapter_model.safetensors")
    return {name: (a, b * _scaling(config, name)) for name, (a, b) in pairs.items()}


def _scaling(config: dict[str, Any], name: str) -> float:
    """α/r of one module, by PEFT's rule: the first pattern that the name ends with wins."""
    alpha = next((v for k, v in config["alpha_pattern"].items() if name.endswith(k)), config["lora_alpha"])
    rank = next((v for k, v in config["rank_pattern"].items() if name.endswith(k)), config["r"])
    return float(alpha / rank**0.5) if config["use_rslora"] else float(alpha / rank)


def _as_stored(pairs: Pairs, dtype: torch.dtype) -> Pairs:
    return {name: (a.to(dtype).contiguous(), b.to(dtype).contiguous()) for name, (a, b) in pairs.items()}


def _weighted_sum(sources: Sequence[Pairs], weights: Sequence[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for pairs, weight in zip(sources, weights, strict=True):
        for name, (a, b) in pairs.items():
            part = weight * (b.float() @ a.float())
            total[name] = total[name] + part if name in total else part
    return total


def _rank(folder: Path) -> int:
    return int(json.loads((folder / "adapter_config.json").read_text())["r"])
