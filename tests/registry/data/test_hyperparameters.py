from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunedock_registry.data.hyperparameters import (
    DataFacts,
    auto_batch_size,
    auto_epochs,
    auto_rank,
    base_rate,
    resolve,
)
from tunedock_registry.data.knobs import Knobs, LoraKnobs, parse_method

FACTS = DataFacts(num_examples=600, hidden_size=4096, model_type="llama", max_rank=64)


@pytest.mark.parametrize(
    ("num_examples", "epochs"),
    [(1, 25), (10, 10), (20, 5), (33, 3), (8333, 3), (8334, 2), (12_500, 2), (12_501, 1), (100_000, 1)],
)
def test_epochs_follow_the_cookbook(num_examples: int, epochs: int) -> None:
    assert auto_epochs(num_examples) == epochs


@pytest.mark.parametrize(
    ("num_examples", "epochs", "size"), [(5, 10, 5), (60, 3, 8), (600, 3, 16), (2000, 3, 32), (534, 3, 16), (50, 1, 8)]
)
def test_the_batch_is_as_large_as_a_hundred_steps_allow(num_examples: int, epochs: int, size: int) -> None:
    assert auto_batch_size(num_examples, epochs) == size


@pytest.mark.parametrize(
    ("hidden", "family", "rate"),
    [
        (2048, "llama", 4e-4),
        (4096, "llama", 2.86e-4),
        (8192, "llama", 1.66e-4),
        (5120, "qwen3", 4e-4),
        (2304, "gemma2", 2e-4),
        (576, "llama", 1.32e-3),
        (64, "llama", 2e-3),
    ],
)
def test_the_base_rate_follows_the_calibration(hidden: int, family: str, rate: float) -> None:
    assert base_rate(hidden, family) == pytest.approx(rate, rel=0.01)


def test_rank_grows_with_the_data_up_to_the_engines_cap() -> None:
    assert [auto_rank(n, 320) for n in (999, 1_000, 50_000, 50_001)] == [16, 32, 32, 64]
    assert auto_rank(10**6, 16) == 16
    assert auto_rank(10**6, 64, fused_experts=True) == 32


def test_supervised_defaults() -> None:
    resolved = resolve(parse_method(None), Knobs(), FACTS)
    assert (resolved.n_epochs, resolved.batch_size, resolved.rank, resolved.alpha) == (3, 16, 16, 32.0)
    assert (resolved.steps_per_epoch, resolved.total_steps, resolved.warmup_steps) == (38, 114, 6)
    assert resolved.eval_interval == 6
    assert resolved.as_hyperparameters() == {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0}


def test_dpo_defaults_halve_after_a_supervised_adapter() -> None:
    method = parse_method({"type": "dpo"})
    resolved = resolve(method, Knobs(), FACTS)
    assert (resolved.n_epochs, resolved.learning_rate, resolved.beta) == (1, 1e-5, 0.1)
    after = resolve(method, Knobs(), replace(FACTS, parent_is_supervised=True, parent_rank=8, parent_alpha=16.0))
    assert (after.learning_rate, after.rank, after.alpha) == (5e-6, 8, 16.0)


def test_what_is_asked_wins() -> None:
    method = parse_method(
        {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}}}
    )
    resolved = resolve(method, Knobs(lora=LoraKnobs(rank=4, alpha=8)), FACTS, steps_per_epoch=9)
    assert (resolved.rank, resolved.alpha, resolved.total_steps) == (4, 8.0, 18)
    assert resolved.learning_rate == pytest.approx(0.5 * base_rate(4096, "llama"))


@given(st.integers(1, 10**6), st.integers(64, 16_384), st.sampled_from(["llama", "qwen2", "phi3"]))
def test_every_number_is_usable_for_any_data(num_examples: int, hidden: int, family: str) -> None:
    resolved = resolve(parse_method(None), Knobs(), DataFacts(num_examples, hidden, family, max_rank=16))
    assert 1 <= resolved.batch_size <= num_examples
    assert 1 <= resolved.n_epochs <= 25
    assert 1e-4 <= resolved.learning_rate <= (4e-4 if hidden >= 1024 else 2e-3)
    assert 0 < resolved.warmup_steps <= resolved.total_steps
