"""What the gateway benchmark makes of its rounds."""

from __future__ import annotations

import pytest

from benchmarks.figures import Figure
from benchmarks.gateway import CALLS, ENGINE, MANY, REST, STOCK, figures, same_answers
from benchmarks.gateway_load import Round


def one_round(wall_s: float, front_us: float, text: str = "one two") -> Round:
    """A hundred tokens."""
    return Round(100, wall_s, front_us * 100 / 1e6, 0.001, [0.2], [0.02, 0.03], [text])


FOUND = {
    ENGINE: [one_round(1.0, 100), one_round(2.0, 110)],
    REST: [one_round(1.05, 150), one_round(2.1, 160)],
    CALLS: [one_round(1.1, 145), one_round(2.2, 155)],
    MANY: [one_round(1.01, 120), one_round(2.02, 130)],
    STOCK: [one_round(1.5, 160)],
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Figure]:
    return {figure.name: figure for figure in figures(FOUND, 8)}


def test_ratios_are_taken_within_a_round(rows: dict[str, Figure]) -> None:
    assert rows["8 callers, REST / engine alone"].value == pytest.approx(1 / 1.05)
    assert rows["8 callers, gRPC, StreamMany / engine alone"].value == pytest.approx(1 / 1.01)


def test_a_gateway_costs_what_it_adds_to_the_engine_alone(rows: dict[str, Figure]) -> None:
    assert rows[f"8 callers, {REST}: CPU added per token"].value == pytest.approx(50)
    assert rows[f"8 callers, {MANY} / REST: added CPU"].value == pytest.approx(0.4)
    assert rows[f"8 callers, {CALLS} / REST: added CPU"].value == pytest.approx(0.9)


def test_goals_are_judged(rows: dict[str, Figure]) -> None:
    judged = {name: row.goal_met for name, row in rows.items() if row.goal}
    assert judged == {
        "8 callers, REST / engine alone": True,
        "8 callers, gRPC, StreamMany / engine alone": True,
        "8 callers, gRPC, StreamMany / REST: added CPU": True,
    }


def test_gateways_that_answer_differently_are_not_compared() -> None:
    same_answers(FOUND)
    with pytest.raises(RuntimeError, match="differently"):
        same_answers({**FOUND, MANY: [one_round(1.0, 1.0, "one too")]})
