"""Which tensor belongs to which module of the base model, and does it fit?"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tunedock_api.errors import Rejected

from ..models.facts import BaseFacts
from .safetensors_header import Header, TensorInfo
from .scan import Pair

_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_.]+)\.lora_([AB])\.weight")
_HINTS = (
    ("lora_embedding_", "LoRA on embeddings is not served"),
    ("lora_magnitude_vector", "DoRA is not served; convert the adapter to plain LoRA first"),
    (".lora_B.bias", "LoRA bias is not served"),
    (".base_layer.", "the file carries weights of the base model; save with save_embedding_layers=False"),
    (".default.weight", "save with save_pretrained, which writes names without the adapter's name"),
)
_UNSERVED = ("embed_tokens", "lm_head", "wte", "embed_out")


def pair_up(header: Header, base: BaseFacts) -> dict[str, Pair]:
    """Module name → its two matrices, all of them checked against the base model's shapes and rank cap.

    Raises Rejected for the first tensor that vLLM would refuse, drop silently or copy into the wrong place.
    """
    halves: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        module, side = _parse(tensor.name)
        if module not in base.modules:
            raise Rejected(_unknown_module(module, base))
        halves.setdefault(module, {})[side] = tensor
    return {module: _pair(module, sides, base) for module, sides in sorted(halves.items())}


def _parse(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is not None:
        return match[1], match[2]
    hint = next(
        (text for mark, text in _HINTS if mark in name), "expected base_model.model.<module>.lora_A.weight or lora_B"
    )
    raise Rejected(f"Tensor {name[:120]!r}: {hint}.")


def _unknown_module(module: str, base: BaseFacts) -> str:
    leaf = module.rpartition(".")[2]
    if leaf in _UNSERVED:
        return f"Module {module[:120]}: LoRA on embeddings and the output layer is not served; tune the linear layers."
    example = _nearest(leaf, base.modules)
    return (
        f"Module {module[:120]} does not exist in base model {base.identity.id!r}, where modules are named like {example}: "
        "the adapter belongs to another base model or another naming of it, and would silently have no effect."
    )


def _nearest(leaf: str, modules: Iterable[str]) -> str:
    names = sorted(modules)
    return next((name for name in names if name.endswith(f".{leaf}")), names[0])


def _pair(module: str, sides: dict[str, TensorInfo], base: BaseFacts) -> Pair:
    if len(sides) != 2:
        raise Rejected(f"Module {module}: lora_A and lora_B must both be there, only lora_{min(sides)} is.")
    pair = Pair(module, sides["A"], sides["B"])
    in_features, out_features = base.modules[module]
    _check_shape(pair.a, (pair.rank, in_features), base)
    _check_shape(pair.b, (out_features, pair.rank), base)
    if pair.rank > base.max_rank:
        raise Rejected(
            f"Module {module}: rank {pair.rank} is above the engine's cap of {base.max_rank}: tune with a rank of at most "
            f"{base.max_rank}, or start the server with a higher one.",
            details={"rank": pair.rank, "max_rank": base.max_rank},
        )
    return pair


def _check_shape(tensor: TensorInfo, expected: tuple[int, int], base: BaseFacts) -> None:
    if tensor.shape != expected:
        raise Rejected(
            f"Tensor {tensor.name}: shape {list(tensor.shape)} does not fit base model {base.identity.id!r}, which needs "
            f"{list(expected)}."
        )
