"""The arithmetic behind the benchmarks."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures import Figure, Report, at_most, bootstrap, percentile


def test_percentile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.01, 0.5, 0.99, 1.0)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_bootstrap_interval_holds_the_median_and_repeats() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    low, high = bootstrap(values)
    assert low <= 3.0 <= high
    assert (low, high) == bootstrap(values)


def test_a_goal_is_met_by_the_median() -> None:
    assert at_most("x", [1.0, 1.0, 9.0], "s", 1.0).goal_met is True
    assert at_most("x", [2.0, 2.0, 0.1], "s", 1.0).goal_met is False
    assert at_most("x", [2.0], "s", None).goal_met is None


def test_one_missed_goal_fails_the_report_and_json_holds_every_row() -> None:
    report = Report("t", [Figure("a", 2.0, "ms", baseline=4.0), Figure("b", 1.0, "x", "<= 0.5 x", False)])
    assert not report.goals_met
    rows = json.loads(report.as_json())["figures"]
    assert [(row["name"], row["ratio"]) for row in rows] == [("a", 0.5), ("b", None)]
