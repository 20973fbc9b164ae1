"""What a base model, its adapter slots and its KV cache cost in memory: arithmetic on `config.json`, no engine.

    one slot at rank r      r · Σ (in + out) · bytes of a number        over the modules that carry adapters
    one token of KV cache   2 · layers · KV heads · head size · bytes   (attention without sliding windows or compression)

An engine allocates every slot at its rank cap, whatever the adapters in it need (vLLM: `max_loras` × `max_lora_rank`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunedock_api.errors import BadInput

from .facts import BaseFacts

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelCost:
    """`weights_bytes` is the size of the safetensors files; `rank_bytes` of one rank of one slot."""

    weights_bytes: int
    rank_bytes: int
    kv_bytes_per_token: int
    max_model_len: int

    def slot_bytes(self, rank: int) -> int:
        return self.rank_bytes * rank


@dataclass(frozen=True)
class Budget:
    """`kv_tokens` is what is left for the KV cache, in tokens; `contexts` how many full-length requests that is."""

    memory_bytes: int
    slots: int
    max_rank: int
    slots_bytes: int
    kv_tokens: int
    contexts: float
    most_slots: int


def model_cost(path: Path, facts: BaseFacts, modules: Collection[str] | None = None) -> ModelCost:
    """`modules` are last name parts that carry adapters; None means all linear ones. Raises BadInput for a strange config."""
    config = json.loads((path / "config.json").read_bytes())
    text = config.get("text_config") or config
    chosen = [shape for name, shape in facts.modules.items() if modules is None or name.rpartition(".")[2] in modules]
    if not chosen:
        raise BadInput(f"no linear module of {facts.identity.id!r} is named {', '.join(sorted(modules or ()))}.")
    size = _BYTES.get(str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or "bfloat16"), 2)
    return ModelCost(
        weights_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        rank_bytes=size * sum(inputs + outputs for inputs, outputs in chosen),
        kv_bytes_per_token=2 * _layers(text) * _kv_width(text) * size,
        max_model_len=facts.max_model_len,
    )


def budget(cost: ModelCost, memory_bytes: int, slots: int, max_rank: int) -> Budget:
    """Splits `memory_bytes` into weights, slots and KV cache. Raises BadInput, with the numbers, when it does not fit."""
    slots_bytes = slots * cost.slot_bytes(max_rank)
    left = memory_bytes - cost.weights_bytes - slots_bytes
    context = cost.max_model_len * cost.kv_bytes_per_token
    if left < context:
        raise BadInput(
            f"{slots} slots of rank {max_rank} do not fit: weights {_mib(cost.weights_bytes)}, slots {_mib(slots_bytes)} "
            f"and one context of {cost.max_model_len} tokens {_mib(context)} need "
            f"{_mib(memory_bytes - left + context)}, there are {_mib(memory_bytes)}.",
            param="slots",
        )
    spare = memory_bytes - cost.weights_bytes - context
    tokens = left // cost.kv_bytes_per_token
    most = spare // cost.slot_bytes(max_rank)
    return Budget(memory_bytes, slots, max_rank, slots_bytes, tokens, tokens / cost.max_model_len, most)


def _layers(text: dict[str, Any]) -> int:
    return int(text.get("num_hidden_layers") or text["n_layer"])


def _kv_width(text: dict[str, Any]) -> int:
    heads = int(text.get("num_attention_heads") or text["n_head"])
    hidden = int(text.get("hidden_size") or text["n_embd"])
    return int(text.get("num_key_value_heads") or heads) * int(text.get("head_dim") or hidden // heads)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
