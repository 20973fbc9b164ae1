"""`python -m tunedock_registry.models.convert FILE.gguf OUT`: one GGUF file to a bf16 safetensors folder.

A process of its own: it is the only code here that needs transformers and torch, once in a home's life.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# What GGUF calls `smollm`: digits are split before the byte-level pattern runs (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
_DIGIT_SPLITTING = ("smollm",)


def convert(gguf: Path, out: Path) -> None:
    """Dequantises `gguf` to bf16 under `out`, with tokenizer, chat template and generation config.

    Raises ValueError when the file carries no chat template or no end-of-turn token.
    """
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, name = str(gguf.parent), gguf.name
    tokenizer = _load_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype="bfloat16", quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _load_tokenizer(gguf: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} carries no chat template")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{gguf.name} names no end-of-turn token")
    if _pre_tokenizer_name(gguf) in _DIGIT_SPLITTING:
        _split_digits(tokenizer)
    return tokenizer


def _pre_tokenizer_name(gguf: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


def _split_digits(tokenizer: Any) -> None:
    """transformers 5.19 reads every GPT-2 style GGUF vocabulary as plain byte-level and forgets the digit rule."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
