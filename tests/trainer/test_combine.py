"""Merged and converted adapters do what their parents do, as far as the reported error says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from support.training import busy_adapter, tiny_path
from transformers import AutoModelForCausalLM
from tunedock_api.errors import BadInput, NotFound, Rejected
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE, Lineage
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.layout import Home
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_registry.registry import Registry
from tunedock_trainer.combine import cli, lowrank
from tunedock_trainer.combine.convert import convert
from tunedock_trainer.combine.merge import MergePlan, merge
from tunedock_trainer.export import export_config, export_weights

IDS = torch.tensor([[11, 45, 300, 7, 99, 230]])
TARGETS = ["q_proj", "v_proj", "down_proj"]


def written(folder: Path, seed: int, rank: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    adapter = busy_adapter(seed, rank)
    (folder / CONFIG_FILE).write_bytes(export_config(adapter.modules.values(), "tiny"))
    export_weights(adapter, folder / WEIGHTS_FILE, adapter.compute.dtype)
    return folder


def peft_adapter(folder: Path, **options: object) -> Path:
    """An adapter trained by PEFT for a few steps, so that every part of it has moved."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    model = get_peft_model(model, PeftLoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.no_grad()
def logits_of_peft(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    result: torch.Tensor = PeftModel.from_pretrained(model, folder)(input_ids=IDS).logits
    return result


@torch.no_grad()
def logits_of_pairs(pairs: lowrank.Pairs) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    for name, (a, b) in pairs.items():
        model.get_submodule(name).weight += b.float() @ a.float()
    result: torch.Tensor = model(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_concatenation_is_the_exact_weighted_sum_and_svd_close_to_it(method: str, tmp_path: Path) -> None:
    folders = [written(tmp_path / "a", 1), written(tmp_path / "b", 2)]
    result = merge(tiny_path(), folders, MergePlan((0.75, 0.25), method), torch.float32)  # type: ignore[arg-type]
    exact = MergePlan((0.75, 0.25), "cat")
    reference = logits_of_pairs(merge(tiny_path(), folders, exact, torch.float32).pairs)
    assert result.relative_distance < (1e-5 if method == "cat" else 0.6)
    assert torch.allclose(logits_of_pairs(result.pairs), reference, atol=1e-4 if method == "cat" else 0.5)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_the_quick_methods_keep_the_rank_say_how_far_they_are_and_repeat_exactly(method: str, tmp_path: Path) -> None:
    folders = [written(tmp_path / "a", 1), written(tmp_path / "b", 2)]
    plan = MergePlan((0.5, 0.5), method)  # type: ignore[arg-type]
    first, second = (merge(tiny_path(), folders, plan, torch.float32) for _ in range(2))
    assert {a.shape[0] for a, _ in first.pairs.values()} == {4}
    assert 0.0 < first.relative_distance < 3.0
    assert all(torch.equal(first.pairs[name][1], second.pairs[name][1]) for name in first.pairs)


def test_plans_that_cannot_work_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folders = [written(tmp_path / "a", 1, rank=4), written(tmp_path / "b", 2, rank=8)]
    for plan, says in (
        (MergePlan((1.0,)), "2 weights"),
        (MergePlan((0.5, 0.5), "ties"), "use cat or svd"),
        (MergePlan((0.5, 0.5), "cat", density=0.0), "density"),
        (MergePlan((0.5, 0.5), "soup"), "unknown"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadInput, match=says):
            plan.check(folders)


def test_dora_becomes_plain_lora_and_more_rank_means_less_error(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "dora", use_dora=True)
    fits = [convert(tiny_path(), folder, rank, torch.float32) for rank in (4, 16, 64)]
    errors = [fit.relative_error for fit in fits]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3, "rank 64 is full rank here"
    assert torch.allclose(logits_of_pairs(fits[2].pairs), logits_of_peft(folder), atol=1e-3)


def test_pissa_becomes_plain_lora_at_twice_its_rank_without_error(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "pissa", init_lora_weights="pissa")
    fit = convert(tiny_path(), folder, 8, torch.float32)
    assert fit.relative_error < 1e-3
    assert torch.allclose(logits_of_pairs(fit.pairs), logits_of_peft(folder), atol=1e-3)


def test_an_adapter_that_trains_more_than_linear_weights_is_refused(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "dora", use_dora=True)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    with pytest.raises(Rejected, match="modules_to_save"):
        convert(tiny_path(), folder, 8, torch.float32)


def test_an_adapter_without_effect_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", 1)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        silent = {name: torch.zeros_like(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  # no mapping
    save_file(silent, folder / WEIGHTS_FILE)
    with pytest.raises(Rejected, match="no effect"):
        convert(tiny_path(), folder, 8, torch.float32)


def test_merge_and_convert_publish_versions_with_lineage_and_probe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_path(None)
    home = Home(tmp_path / "home")
    registry = Registry.open(home)
    for name, seed in (("left", 1), ("right", 2)):
        publish_ready(registry, name, written(tmp_path / name, seed), base_facts(model, "tiny", 64))
    cli.merge(["left@1", "right@1"], into="blend", method="cat", model=str(model), home=home.root, as_json=True)
    merged = json.loads(capsys.readouterr().out)
    found = registry.adapters.by_id(registry.adapters.version("default", "blend", 1).id)
    assert (merged["ref"], found.origin, found.rank) == ("blend@1", "merged", 8)
    assert found.manifest.lineage.parents == ("left@1", "right@1")
    assert found.manifest.probe is not None
    assert merged["notes"]["distance_from_weighted_sum"] < 0.02, "what rounding to bfloat16 costs"

    folder = peft_adapter(tmp_path / "dora", use_dora=True)
    cli.convert(folder, into="plain", rank=64, model=str(model), home=home.root, as_json=True)
    converted = json.loads(capsys.readouterr().out)
    assert registry.adapters.version("default", "plain", 1).origin == "converted"
    assert converted["notes"]["kind"] == "dora"
    with pytest.raises(BadInput, match="raise --rank"):
        cli.convert(folder, into="plain", rank=1, max_error=0.01, model=str(model), home=home.root)
    with pytest.raises(NotFound, match="left@9"):
        cli.merge(["left@9", "right@1"], into="blend", model=str(model), home=home.root)
    registry.close()


def publish_ready(registry: Registry, name: str, folder: Path, facts: BaseFacts) -> None:
    parts = ManifestParts(lineage=Lineage(origin="imported"), base=facts.identity)
    prepared = prepare(folder / CONFIG_FILE, folder / WEIGHTS_FILE, facts, parts)
    version = registry.adapters.publish("default", name, prepared, origin="imported")
    registry.adapters.set_state(version.id, "verifying")
    registry.adapters.set_state(version.id, "ready")
