"""Kinds of LoRA that vLLM refuses (DoRA, PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) made plain.

PEFT applies the adapter in its own way; what counts is the change of each weight that comes out: Δ = W_merged − W_base,
in float32, with W_base as the server holds it. Δ is then fitted by a plain LoRA. DoRA rescales whole columns, so its Δ
has full rank: the error that is left depends on the rank and is reported, never hidden. PiSSA and its kin subtract their
start from the base, so their Δ has rank 2r at most and fits exactly there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tunedock_api.errors import BadInput, Rejected

from .lowrank import Fit, fit

_REFUSED = {
    "modules_to_save": "it trains whole modules beside LoRA",
    "trainable_token_indices": "it trains token embeddings",
    "layer_replication": "it replicates layers",
    "target_parameters": "it targets fused expert parameters",
}


def convert(base_path: Path, folder: Path, rank: int, dtype: torch.dtype) -> Fit:
    """A plain LoRA of rank `rank` (at most) for the PEFT folder `folder`. Memory: the base model twice, in float32.

    Raises Rejected when the adapter changes more than linear weights, BadInput when PEFT cannot load it.
    """
    check_convertible(folder)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.ndim == 2}
    merged = _merged(model, folder)
    deltas = _changes(before, merged)
    try:
        return fit(deltas, rank, dtype)
    except ValueError as error:
        raise Rejected("The adapter has no effect: merged into the base model it changes no weight.") from error


def check_convertible(folder: Path) -> dict[str, Any]:
    """The adapter's config. Raises Rejected when more than linear weights would change."""
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder.name} holds no readable adapter_config.json.", param="folder") from error
    for key, why in _REFUSED.items():
        if config.get(key):
            raise Rejected(f"The adapter cannot become a plain LoRA: {key} is set, {why}.", param=key)
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise Rejected("The adapter cannot become a plain LoRA: it trains biases.", param="bias")
    return config


def _merged(model: Any, folder: Path) -> dict[str, Tensor]:
    from peft import PeftModel

    try:
        tuned = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(
            f"PEFT cannot load the adapter on this base model: {str(error).splitlines()[0][:300]}"
        ) from error
    return {name: weight.detach() for name, weight in tuned.named_parameters()}


def _changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Module name → change of its weight. Raises Rejected when an embedding changes."""
    changes = {}
    for name, old in before.items():
        delta = after[name] - old
        if not bool(delta.any()):
            continue
        if "embed" in name or name.startswith("lm_head"):
            raise Rejected(f"The adapter cannot become a plain LoRA here: it changes {name}.")
        changes[name.removesuffix(".weight")] = delta
    return changes
