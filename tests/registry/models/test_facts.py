from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.adapters import HIDDEN, LEAVES, VOCAB, facts, write_base
from tunedock_api.errors import BadInput
from tunedock_registry.models.facts import BaseFacts, base_facts, chat_template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "tiny")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _add_tensors(folder: Path, **shapes: tuple[int, ...]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.update({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    save_file(tensors, path)


def test_the_linear_modules_are_found_by_name_and_shape(folder: Path) -> None:
    base = facts(folder)
    expected = {f"model.layers.{layer}.{leaf}": shape for layer in (0, 1) for leaf, shape in LEAVES.items()}
    assert base.modules == expected
    assert (base.architecture, base.hidden_size, base.vocab_size) == ("LlamaForCausalLM", HIDDEN, VOCAB)
    assert (base.max_rank, base.max_model_len, base.identity.id) == (16, 128, "tiny")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.3.up_proj.weight",
        "model.layers.0.mlp.shared_expert_gate.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "model.vision_tower.layers.0.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "model.layers.0.post_norm.weight_scale",
    ],
)
def test_what_lora_is_not_served_on_is_left_out(folder: Path, name: str) -> None:
    before = facts(folder).modules
    _add_tensors(folder, **{name: (8, 8)})
    assert facts(folder).modules == before


def test_a_gate_projection_is_no_router(folder: Path) -> None:
    _add_tensors(folder, **{"model.layers.0.mlp.gate_proj.weight": (24, 16)})
    assert facts(folder).modules["model.layers.0.mlp.gate_proj"] == (16, 24)


def test_facts_go_through_json_unchanged(folder: Path) -> None:
    base = facts(folder)
    assert BaseFacts.model_validate_json(base.model_dump_json()) == base


def test_a_copy_of_the_model_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    copy = write_base(tmp_path / "copy")
    _edit(copy / "config.json", transformers_version="5.0.0", _name_or_path="/elsewhere", torch_dtype="bfloat16")
    assert facts(copy).identity == facts(folder).identity


@pytest.mark.parametrize("part", ["config", "weights", "tokenizer", "template"])
def test_every_part_of_the_identity_counts(folder: Path, tmp_path: Path, part: str) -> None:
    before = facts(folder).identity
    if part == "config":
        _edit(folder / "config.json", rope_theta=1e6)
    elif part == "weights":
        folder = write_base(tmp_path / "other", seed=1)
    elif part == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        _edit(folder / "tokenizer_config.json", chat_template="{{ x }}")
    after = facts(folder).identity
    changed = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
    assert changed == {
        {
            "config": "config_sha256",
            "weights": "config_sha256",
            "tokenizer": "tokenizer_sha256",
            "template": "chat_template_sha256",
        }[part]
    }


def test_the_template_in_its_own_file_wins(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ own }}")
    assert chat_template(folder) == "{{ own }}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], ""),
        (None, ""),
    ],
)
def test_the_template_in_the_tokenizer_config_may_have_names(folder: Path, value: Any, text: str) -> None:
    _edit(folder / "tokenizer_config.json", chat_template=value)
    assert chat_template(folder) == text


def test_a_model_without_a_template_has_the_empty_one(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert chat_template(folder) == ""


def test_shards_are_read_as_the_index_names_them(folder: Path) -> None:
    whole = facts(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    save_file({"consolidated.weight": np.zeros((4, 4), np.float32)}, folder / "consolidated.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert facts(folder).modules == whole.modules


def test_a_model_with_a_text_part_is_described_by_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = {key: config.pop(key) for key in ("hidden_size", "vocab_size", "max_position_embeddings")}
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    assert facts(folder).vocab_size == VOCAB


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _torn_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def _packed_weights(folder: Path) -> None:
    save_file({"model.layers.0.q_proj.weight": np.zeros((4, 4), np.int8)}, folder / "model.safetensors")


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _without_vocabulary(folder: Path) -> None:
    _edit(folder / "config.json", vocab_size=None)


def _without_architecture(folder: Path) -> None:
    _edit(folder / "config.json", architectures=[])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_without_config, "config.json of the base model cannot be read"),
        (_without_weights, "no safetensors weights"),
        (_torn_weights, "not a safetensors file"),
        (_packed_weights, "packed quantised weights"),
        (_without_tokenizer, "no tokenizer files"),
        (_without_vocabulary, "no vocab_size"),
        (_without_architecture, "no architecture"),
    ],
)
def test_a_folder_that_is_no_servable_model_is_refused_in_one_line(folder: Path, spoil: Any, reason: str) -> None:
    spoil(folder)
    with pytest.raises(BadInput, match=reason) as caught:
        base_facts(folder, "tiny", 16)
    assert "\n" not in caught.value.message
