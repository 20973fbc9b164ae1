"""A base model and adapter files small enough to make by hand: no torch, no engine."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE, BaseModelIdentity
from tunedock_registry.models.facts import BaseFacts

HIDDEN, KV_DIM, LAYERS = 16, 8, 2


def tiny_base(model_id: str = "tiny-base", max_rank: int = 8) -> BaseFacts:
    modules: dict[str, tuple[int, int]] = {}
    for layer in range(LAYERS):
        modules[f"model.layers.{layer}.self_attn.q_proj"] = (HIDDEN, HIDDEN)
        modules[f"model.layers.{layer}.self_attn.v_proj"] = (HIDDEN, KV_DIM)
    return BaseFacts(
        identity=BaseModelIdentity(
            id=model_id, config_sha256="a" * 64, tokenizer_sha256="b" * 64, chat_template_sha256="c" * 64
        ),
        architecture="LlamaForCausalLM",
        modules=modules,
        max_rank=max_rank,
        vocab_size=128,
        max_model_len=2048,
        hidden_size=HIDDEN,
    )


def adapter_config(rank: int = 4, base: str = "tiny-base") -> bytes:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "lora_dropout": 0.0,
    }
    return json.dumps(config).encode()


def adapter_weights(base: BaseFacts, seed: int = 0, rank: int = 4, scale: float = 1.0) -> bytes:
    """The bytes of a safetensors file with random A and B for every module of `base`."""
    rng = random.Random(seed)
    header: dict[str, object] = {}
    data = bytearray()
    for module, (width_in, width_out) in sorted(base.modules.items()):
        for side, shape in (("A", [rank, width_in]), ("B", [width_out, rank])):
            count = shape[0] * shape[1]
            start = len(data)
            data += struct.pack(f"<{count}f", *(rng.gauss(0, 1) * scale for _ in range(count)))
            name = f"base_model.model.{module}.lora_{side}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def write_adapter(folder: Path, base: BaseFacts, seed: int = 0, rank: int = 4) -> Path:
    """A PEFT folder as a user would bring it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_bytes(adapter_config(rank, base.identity.id))
    (folder / WEIGHTS_FILE).write_bytes(adapter_weights(base, seed, rank))
    return folder
