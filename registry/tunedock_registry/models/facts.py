"""What a base model is, as far as adapters must know: names and shapes of its linear modules, and digests of its identity.

Read from `config.json`, the tokenizer's files and the headers of the safetensors files: no torch, no weights in memory.
Server and trainer both call `base_facts`, so both sides compare the same values.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_api.manifest import BaseModelIdentity, Frozen, canonical_json

MAX_HEADER_BYTES = 100 * 2**20
_SAMPLES, _SAMPLE_BYTES = 16, 4_096

# Keys that differ between copies of one and the same model.
_VOLATILE = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation"}
)
_TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model", "added_tokens.json"),
    ("tekken.json",),
    ("vocab.json", "merges.txt", "added_tokens.json"),
    ("spiece.model", "added_tokens.json"),
    ("vocab.txt", "added_tokens.json"),
)
# Two-dimensional weights that LoRA is not served on: embeddings, output layer, routers and experts of mixtures, other
# modalities.
_NOT_LINEAR = re.compile(
    r"(^|\.)(embed_tokens|embeddings?|wte|wpe|lm_head|embed_out|word_embeddings|position_embeddings"
    r"|router|gate|shared_expert_gate|experts|visual|vision_tower|vision_model|audio_tower|multi_modal_projector|mtp)(\.|$)"
)
_WHOLE_NUMBER_TYPES = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"})


class BaseFacts(Frozen):
    """`modules` maps a full module name (`model.layers.0.self_attn.q_proj`) to (in_features, out_features).

    `max_rank` is the engine's cap; `max_model_len` the longest context in tokens. JSON through `model_dump_json`.
    """

    identity: BaseModelIdentity
    architecture: str
    modules: dict[str, tuple[int, int]]
    max_rank: int
    vocab_size: int
    max_model_len: int
    hidden_size: int


def base_facts(path: Path, model_id: str, max_rank: int) -> BaseFacts:
    """Reads the model folder. Raises BadInput when it is not a model that LoRA adapters can be served on."""
    config = _json_object(path / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    shapes = _tensor_shapes(path)
    return BaseFacts(
        identity=BaseModelIdentity(
            id=model_id,
            config_sha256=_config_digest(config, shapes, path),
            tokenizer_sha256=_tokenizer_digest(path),
            chat_template_sha256=sha256(chat_template(path).encode()).hexdigest(),
        ),
        architecture=_architecture(config, path),
        modules=_modules(shapes, path),
        max_rank=max_rank,
        vocab_size=_whole_number(text, "vocab_size", path),
        max_model_len=_whole_number(text, "max_position_embeddings", path),
        hidden_size=_whole_number(text, "hidden_size", path),
    )


def chat_template(path: Path) -> str:
    """The default chat template's text, "" when the tokenizer has none. The file of its own wins, as in transformers."""
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config_path = path / "tokenizer_config.json"
    template = _json_object(config_path).get("chat_template") if config_path.is_file() else None
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path.name} of the base model cannot be read: {path}.", param="model") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path.name} of the base model is not a JSON object: {path}.", param="model")
    return value


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadInput(f"config.json in {path} names no architecture.", param="model")
    return names[0]


def _whole_number(config: Any, key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise BadInput(f"config.json in {path} has no {key}: only causal language models can be served.", param="model")
    return value


def _tensor_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor name → (dtype, shape), over all safetensors files of the folder."""
    files = weight_files(path)
    if not files:
        raise BadInput(f"{path} holds no safetensors weights; convert the model first.", param="model")
    shapes: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        for name, entry in _header(file).items():
            shapes[name] = (entry["dtype"], entry["shape"])
    return shapes


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that the index names, else all of the folder, in order of name."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return sorted(path / name for name in set(_json_object(index).get("weight_map", {}).values()))
    single = path / "model.safetensors"
    return [single] if single.is_file() else sorted(path.glob("*.safetensors"))


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(MAX_HEADER_BYTES, path.stat().st_size):
                raise BadInput(f"{path} is not a safetensors file.", param="model")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise BadInput(f"The header of {path} cannot be read.", param="model") from error
    header.pop("__metadata__", None)
    return dict(header)


def _modules(shapes: Mapping[str, tuple[str, list[int]]], path: Path) -> dict[str, tuple[int, int]]:
    modules = {
        name.removesuffix(".weight"): (shape[1], shape[0])
        for name, (dtype, shape) in sorted(shapes.items())
        if name.endswith(".weight")
        and len(shape) == 2
        and dtype not in _WHOLE_NUMBER_TYPES
        and not _NOT_LINEAR.search(name)
    }
    if not modules:
        raise BadInput(
            f"{path} has no linear modules that LoRA can be served on; packed quantised weights are not supported.",
            param="model",
        )
    return modules


def _config_digest(config: Mapping[str, Any], shapes: Mapping[str, tuple[str, list[int]]], path: Path) -> str:
    """Of the config without what varies between copies, the tensors' names and shapes, and samples of their bytes.

    The samples tell two models of one architecture apart (a base and its instruct version) without reading gigabytes.
    """
    stable = {key: value for key, value in config.items() if key not in _VOLATILE}
    tensors = {name: [dtype, *shape] for name, (dtype, shape) in shapes.items()}
    hasher = sha256(canonical_json({"config": stable, "tensors": tensors}))
    for file in weight_files(path):
        hasher.update(_samples(file))
    return hasher.hexdigest()


def _samples(path: Path) -> bytes:
    """Blocks spread evenly over the data section of one safetensors file."""
    with path.open("rb") as stream:
        data_start = 8 + int.from_bytes(stream.read(8), "little")
        data_bytes = os.fstat(stream.fileno()).st_size - data_start
        blocks = []
        for number in range(_SAMPLES):
            stream.seek(data_start + data_bytes * number // _SAMPLES)
            blocks.append(stream.read(_SAMPLE_BYTES))
    return b"".join(blocks)


def _tokenizer_digest(path: Path) -> str:
    """Of the files that turn text into token ids: `tokenizer.json` when it is there, else the older kinds."""
    for names in _TOKENIZER_FILES:
        if (path / names[0]).is_file():
            present = [path / name for name in names if (path / name).is_file()]
            return sha256(b"".join(sha256(file.read_bytes()).digest() for file in present)).hexdigest()
    raise BadInput(f"{path} holds no tokenizer files.", param="model")
