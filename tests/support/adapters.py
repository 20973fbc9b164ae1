"""A tiny base model folder and LoRA files for it, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tunedock_api.manifest import Lineage
from tunedock_registry.adapters.intake import ManifestParts, PreparedAdapter, prepare
from tunedock_registry.models.facts import BaseFacts, base_facts

HIDDEN, INNER, VOCAB, LAYERS = 16, 24, 64, 2
LEAVES: Mapping[str, tuple[int, int]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN // 2),
    "mlp.down_proj": (INNER, HIDDEN),
}
FloatArray = npt.NDArray[np.float32]


def write_base(folder: Path, *, seed: int = 0, template: str = "{{ messages }}") -> Path:
    """A Hugging Face folder with config, tokenizer and weights of a two-layer model."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "transformers_version": "5.19.0",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    generator = np.random.default_rng(seed)
    tensors: dict[str, FloatArray] = {"model.embed_tokens.weight": _random(generator, (VOCAB, HIDDEN))}
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        for leaf, (inputs, outputs) in LEAVES.items():
            tensors[f"model.layers.{layer}.{leaf}.weight"] = _random(generator, (outputs, inputs))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def facts(folder: Path, max_rank: int = 16) -> BaseFacts:
    return base_facts(folder, "tiny", max_rank)


def lora_tensors(seed: int = 1, rank: int = 4, leaves: Mapping[str, tuple[int, int]] = LEAVES) -> dict[str, FloatArray]:
    """Tensor name → values, for every layer and the given modules."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, FloatArray] = {}
    for layer in range(LAYERS):
        for leaf, (inputs, outputs) in leaves.items():
            prefix = f"base_model.model.model.layers.{layer}.{leaf}"
            tensors[f"{prefix}.lora_A.weight"] = _random(generator, (rank, inputs))
            tensors[f"{prefix}.lora_B.weight"] = _random(generator, (outputs, rank))
    return tensors


def lora_config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes for these tensors."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/else",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": ["v_proj", "q_proj", "down_proj"],
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "loftq_config": {},
        "peft_version": "0.21.2",
    }
    return {**config, **changes}


def write_lora(folder: Path, tensors: Mapping[str, FloatArray] | None = None, **config: Any) -> Path:
    """A PEFT folder. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(**config)))
    save_file(dict(tensors or lora_tensors()), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def prepare_folder(folder: Path, base: BaseFacts, parts: ManifestParts | None = None) -> PreparedAdapter:
    return prepare(
        folder / "adapter_config.json", folder / "adapter_model.safetensors", base, parts or imported_parts()
    )


def imported_parts(**changes: Any) -> ManifestParts:
    return ManifestParts(lineage=Lineage(origin="imported"), **changes)


def make_prepared(folder: Path, base: BaseFacts, seed: int = 1, **parts: Any) -> PreparedAdapter:
    """A different adapter for every seed."""
    return prepare_folder(write_lora(folder, lora_tensors(seed)), base, imported_parts(**parts))


def _random(generator: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return generator.standard_normal(shape).astype(np.float32)
