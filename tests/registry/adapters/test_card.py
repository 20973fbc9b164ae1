"""The model card shows what was measured after the folder was closed."""

from __future__ import annotations

from typing import Any

from tunedock_registry.adapters.card import evaluation_section

LOSS = {"mean": -0.5, "low": -0.75, "high": -0.25}
REPORT: dict[str, Any] = {
    "num_examples": 24,
    "previous": None,
    "base_metrics": {"loss": 2.0, "token_accuracy": 0.25},
    "new_metrics": {"loss": 1.5, "token_accuracy": 0.5},
    "vs_base": {"loss": LOSS},
    "forgetting": {"general_loss_change": 0.0125, "num_texts": 6},
}


def test_every_measure_is_a_row_with_the_change_and_its_interval() -> None:
    lines = evaluation_section(REPORT).splitlines()
    assert "|  | base model | this version | change to base model |" in lines
    assert "| loss | 2 | 1.5 | -0.5 (-0.75 to -0.25) |" in lines
    assert "| token accuracy | 0.25 | 0.5 |  |" in lines
    assert any("with 24 examples" in line for line in lines)
    assert any("+0.0125 nats a token (6 texts)" in line for line in lines)


def test_the_version_that_was_in_production_has_columns_of_its_own() -> None:
    report = {
        **REPORT,
        "previous": "support@3",
        "previous_metrics": REPORT["base_metrics"],
        "vs_previous": {"loss": LOSS},
    }
    table = [line for line in evaluation_section(report).splitlines() if line.startswith("|")]
    assert "`support@3`" in table[0]
    assert table[2] == "| loss | 2 | 2 | 1.5 | -0.5 (-0.75 to -0.25) | -0.5 (-0.75 to -0.25) |"
    assert len({line.count("|") for line in table}) == 1
