from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import default_model_path, tiny_llama


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(default_model_path())


def test_special_tokens_are_the_chat_markers(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    generation = json.loads((default_model_path() / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_chat_template_closes_every_turn_and_opens_the_answer(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_digits_are_split_from_the_spaces_before_them(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a\n  2024")) == ["a", "ĊĠĠ", "2", "0", "2", "4"]


def test_plain_text_gets_no_extra_token(tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer.encode("The capital of France")) == "The capital of France"


def test_the_model_knows_the_capital_of_france(tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.bfloat16)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


def test_a_tiny_model_loads_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second = tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert json.loads((first / "config.json").read_text())["num_hidden_layers"] == 2
