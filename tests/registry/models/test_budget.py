"""What fits is arithmetic that a person can check by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import default_model_path
from tunedock_api.errors import BadInput
from tunedock_registry.models.budget import ModelCost, budget, model_cost
from tunedock_registry.models.facts import base_facts
from tunedock_registry.models.hub import download_adapter
from tunedock_registry.planning import plan

COST = ModelCost(weights_bytes=1_000, rank_bytes=10, kv_bytes_per_token=2, max_model_len=100)


def test_the_default_model_costs_what_its_shapes_say() -> None:
    path = default_model_path()
    cost = model_cost(path, base_facts(path, "smollm2", 32))
    assert cost.slot_bytes(16) == 9_768_960, "30 layers, Σ(in + out) = 10,176, rank 16, bf16"
    assert cost.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert cost.max_model_len == 8192


def test_only_the_named_modules_count() -> None:
    path = default_model_path()
    facts = base_facts(path, "smollm2", 32)
    assert model_cost(path, facts, ["q_proj"]).rank_bytes == 2 * 30 * (576 + 576)
    with pytest.raises(BadInput, match="no_proj"):
        model_cost(path, facts, ["no_proj"])


def test_memory_is_split_into_weights_slots_and_cache() -> None:
    fits = budget(COST, memory_bytes=2_000, slots=2, max_rank=8)
    assert (fits.slots_bytes, fits.kv_tokens, fits.contexts, fits.most_slots) == (160, 420, 4.2, 10)


def test_what_does_not_fit_is_refused_with_all_numbers() -> None:
    with pytest.raises(BadInput, match="11 slots of rank 8 do not fit"):
        budget(COST, memory_bytes=2_000, slots=11, max_rank=8)


def test_the_plan_command_prints_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    plan(model=str(default_model_path()), memory_gib=4, slots=4, max_lora_rank=16, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["slot_bytes"]["16"] * 4 == shown["slots_bytes"]
    plan(model=str(default_model_path()), memory_gib=4, slots=4, max_lora_rank=16)
    assert "<- --max-lora-rank" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["org/adapter", "org/adapter@main", "org/adapter@abc", "../x@" + "a" * 40])
def test_an_adapter_is_fetched_by_full_commit_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="40 hex digits"):
        download_adapter(name, tmp_path)
