"""Models for tests: the default one (fetched once, kept in the home folder) and tiny random ones with its tokenizer."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from tunedock_registry.layout import Home
from tunedock_registry.models import resolve_model

REPOSITORY = Path(__file__).resolve().parents[2]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@functools.cache
def default_model_path() -> Path:
    """The converted default model; fetched into TUNEDOCK_HOME (or `.home` of the checkout) when it is not there."""
    home = Home.resolve(os.environ.get("TUNEDOCK_HOME") or REPOSITORY / ".home")
    return resolve_model(None, home).path


def copy_tokenizer(target: Path) -> Path:
    """Puts the default model's tokenizer and chat template into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copy(default_model_path() / name, target / name)
    return target


def tiny_llama(path: Path, layers: int = 2, hidden: int = 64, vocab: int | None = None, seed: int = 0) -> Path:
    """Writes a random Llama (bf16, tied embeddings, 2 heads of each kind) with the real SmolLM2 tokenizer.

    `vocab` None means the tokenizer's 49152; a smaller one saves time where no text is tokenised.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    copy_tokenizer(path)
    config = LlamaConfig(
        vocab_size=vocab or 49_152,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(path)
    return path
