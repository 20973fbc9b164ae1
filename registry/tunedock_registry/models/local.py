"""A base model as a local folder in Hugging Face layout, and the check that it is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunedock_api.errors import BadInput

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class LocalModel:
    """`path` holds config.json, safetensors and tokenizer; `model_id` is the public name of the base."""

    path: Path
    model_id: str


@dataclass(frozen=True)
class Progress:
    """One report of a long step. `total` is None when it is not known; download counts bytes, the others steps."""

    stage: Literal["wait", "download", "convert"]
    message: str
    done: int = 0
    total: int | None = None


ProgressSink = Callable[[Progress], None]


def not_found(message: str) -> BadInput:
    return BadInput(message, "model_not_found", param="model")


def check_folder(path: Path) -> Path:
    """Returns `path`. Raises BadInput (model_not_found) unless it holds a whole model: config, weights, tokenizer."""
    if not path.is_dir():
        raise not_found(f"The model folder {path} does not exist.")
    if not (path / "config.json").is_file():
        raise not_found(f"The model folder {path} holds no config.json: give a folder in Hugging Face layout.")
    if not any(path.glob("*.safetensors")):
        raise not_found(
            f"The model folder {path} holds no *.safetensors file: convert the weights to safetensors first."
        )
    _check_shards(path)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise not_found(f"The model folder {path} holds no tokenizer: add tokenizer.json.")
    return path


def _check_shards(path: Path) -> None:
    index = path / _INDEX_FILE
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise not_found(f"The model folder {path} has a broken {_INDEX_FILE}: download the model again.") from error
    missing = sorted(name for name in shards if not (path / name).is_file())
    if missing:
        raise not_found(
            f"The model folder {path} lacks {len(missing)} of {len(shards)} weight files ({missing[0]}): "
            "download the model again."
        )
