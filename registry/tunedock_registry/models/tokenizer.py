"""A model folder's tokenizer without torch: two seconds and 130 MB instead of six and 620."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tunedock_api.errors import BadInput

from ..data.render import Renderer, Tokenizer


def load_renderer(path: Path, template_kwargs: Mapping[str, Any] | None = None) -> Renderer:
    """Renders with the model's tokenizer, chat template and stop ids. Raises BadInput when it cannot be loaded."""
    return Renderer(load_tokenizer(path), template_kwargs, stop_token_ids(path))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of `tokenizer.json`; the auto classes of transformers would import torch."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise BadInput("Counting tokens needs an extra: pip install 'tunedock[server]'.", param="model") from error
    if not (path / "tokenizer.json").is_file():
        raise BadInput(
            f"The model folder {path.name} has no tokenizer.json, which counting tokens needs.", param="model"
        )
    return cast(Tokenizer, PreTrainedTokenizerFast.from_pretrained(str(path)))


def stop_token_ids(path: Path) -> tuple[int, ...]:
    """The ids that end an answer by the model's generation_config; empty when it has none."""
    file = path / "generation_config.json"
    if not file.is_file():
        return ()
    ids = json.loads(file.read_bytes()).get("eos_token_id")
    if isinstance(ids, int):
        return (ids,)
    return tuple(ids or ())
