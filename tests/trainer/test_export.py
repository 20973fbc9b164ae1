"""What is exported is what was trained, in PEFT's hands too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.training import config, facts, items, step, tiny_base, tiny_path, tokens, trainee
from transformers import AutoModelForCausalLM
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE, Lineage
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_trainer.adapter import Adapter
from tunedock_trainer.base import load_base
from tunedock_trainer.export import export_config, export_weights, read_weights, served_adapter
from tunedock_trainer.losses import Item
from tunedock_trainer.probe import make_probe
from tunedock_trainer.rows import build_pass
from tunedock_trainer.settings import LoraConfig
from tunedock_trainer.trainee import Trainee

SHAPES = [
    LoraConfig(rank=4, alpha=8),
    LoraConfig(rank=4, alpha=6, rslora=True),
    LoraConfig(rank=4, alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3.0}),
    LoraConfig(rank=3, alpha=5, target_modules=("v_proj", "up_proj")),
]


def trained(lora: LoraConfig) -> Trainee:
    one = trainee(config(lora=lora), items(8))
    for _ in range(3):
        step(one)
    return one


def write(adapter: Adapter, folder: Path) -> Path:
    (folder / CONFIG_FILE).write_bytes(export_config(adapter.modules.values(), "tiny"))
    export_weights(adapter, folder / WEIGHTS_FILE, adapter.compute.dtype)
    return folder


@pytest.mark.parametrize("lora", SHAPES, ids=["plain", "rslora", "patterns", "targets"])
def test_the_exported_folder_says_the_same_in_peft(lora: LoraConfig, tmp_path: Path) -> None:
    one = trained(lora)
    write(one.adapter, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(model, str(tmp_path))
    rows = build_pass([tokens(8, 1)])
    with torch.no_grad(), tiny_base().running(rows, [one.adapter]):
        ours = tiny_base().hidden(rows) @ tiny_base().head.weight_VD.T
    with torch.no_grad():
        assert torch.allclose(ours, loaded(input_ids=rows.input_ids).logits[0], atol=1e-4)


def test_the_exported_folder_passes_the_registry_with_its_scaling_folded(tmp_path: Path) -> None:
    one = trained(LoraConfig(rank=4, alpha=8, rank_pattern={"q_proj": 2}))
    write(one.adapter, tmp_path)
    parts = ManifestParts(lineage=Lineage(origin="trained"), base=facts().identity)
    prepared = prepare(tmp_path / CONFIG_FILE, tmp_path / WEIGHTS_FILE, facts(), parts)
    canonical = json.loads(prepared.config)
    assert canonical["r"] == canonical["lora_alpha"]
    assert canonical["rank_pattern"] == canonical["alpha_pattern"]
    assert prepared.manifest.lora.rank == 4


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one = trained(LoraConfig(rank=4, alpha=8))
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        write(one.adapter, folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_probe_is_taken_with_the_numbers_in_the_file(tmp_path: Path) -> None:
    one = trained(LoraConfig(rank=4, alpha=8))
    write(one.adapter, tmp_path)
    base = tiny_base()
    served = served_adapter(tmp_path / WEIGHTS_FILE, base.groups, dtype=base.dtype, device="cpu")
    probe = make_probe(base, served, items(20))
    assert len(probe.examples) == 8
    example = probe.examples[0]
    sequence = items(1)[0].sequences[0]
    rows = build_pass([sequence])
    with torch.no_grad(), base.running(rows, [one.adapter]):
        expected = base.scores(rows).logprobs_M.tolist()
    assert example.token_ids == sequence.token_ids
    assert example.adapter_logprobs == pytest.approx(expected, abs=1e-4)
    assert example.adapter_logprobs != pytest.approx(example.base_logprobs, abs=1e-3)


def test_long_examples_are_probed_around_their_first_trained_token() -> None:
    long = Item((tokens(900, 1, labels=100),))
    probe = make_probe(tiny_base(), trained(LoraConfig(rank=4, alpha=8)).adapter, [long])
    assert len(probe.examples[0].token_ids) == 356
    assert probe.examples[0].start == 256


def test_a_continued_adapter_starts_where_its_parent_ended(tmp_path: Path) -> None:
    one = trained(LoraConfig(rank=4, alpha=8))
    write(one.adapter, tmp_path)
    child = trainee(config(), items(8))
    child.adapter.load(read_weights(tmp_path / WEIGHTS_FILE), folded=True)
    assert torch.allclose(child.adapter.params, one.adapter.params, atol=1e-6)


@pytest.mark.parametrize("lora", SHAPES, ids=["plain", "rslora", "patterns", "targets"])
def test_on_a_bf16_base_a_continued_adapter_computes_with_its_parents_very_numbers(
    lora: LoraConfig, tmp_path: Path
) -> None:
    base = load_base(tiny_path(), "tiny", max_rank=64, dtype=torch.bfloat16)
    parent, child = (trainee(config(lora=lora), items(8), base) for _ in range(2))
    for _ in range(3):
        step(parent)
    write(parent.adapter, tmp_path)
    child.adapter.load(read_weights(tmp_path / WEIGHTS_FILE), folded=True)
    assert torch.equal(child.adapter.compute, parent.adapter.compute)
    assert child.evaluate(items(20)).loss == parent.evaluate(items(20)).loss
    assert not torch.equal(child.adapter.params, parent.adapter.params)


def test_an_adapter_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    write(trained(LoraConfig(rank=4, alpha=8)).adapter, tmp_path)
    other = trainee(config(lora=LoraConfig(rank=2, alpha=8)), items(8))
    with pytest.raises(ValueError, match="rank 4, expected 2"):
        other.adapter.load(read_weights(tmp_path / WEIGHTS_FILE), folded=True)


def test_on_a_float32_base_an_adapter_for_bf16_computes_with_the_numbers_in_the_file(tmp_path: Path) -> None:
    base = replace(load_base(tiny_path(), "tiny", max_rank=64, dtype=torch.float32), served_dtype=torch.bfloat16)
    one = trainee(config(lora=LoraConfig(rank=4, alpha=6)), items(8), base)
    for _ in range(3):
        step(one)
    export_weights(one.adapter, tmp_path / WEIGHTS_FILE, base.served_dtype)
    written = read_weights(tmp_path / WEIGHTS_FILE)
    for name, (a, b) in one.adapter.served().items():
        assert written[name][0].dtype == torch.bfloat16
        assert torch.equal(written[name][0].float(), a)
        assert torch.equal(written[name][1].float(), b)
