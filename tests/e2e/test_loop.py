"""The main job on the real engine: tune, publish, chat."""

from __future__ import annotations

from support.live_server import BASE, Live

from examples.demo.domain import Domain
from examples.demo.measure import exact_match

DATES, NEXT_DATES = Domain("dates"), Domain("dates", "-v2")


def test_tuning_takes_held_out_exact_match_from_at_most_0_2_to_at_least_0_9(live: Live, dates_v1: str) -> None:
    questions = DATES.held_out()
    base, tuned = exact_match(live.openai, BASE, questions), exact_match(live.openai, dates_v1, questions)
    assert base.exact_match <= 0.2
    assert tuned.exact_match >= 0.9, tuned.wrong[:5]


def test_a_second_version_learns_other_answers_and_leaves_the_first_alone(live: Live, dates_v2: str) -> None:
    score = exact_match(live.openai, dates_v2, NEXT_DATES.held_out())
    assert dates_v2 == "dates@2"
    assert score.exact_match >= 0.8, score.wrong[:5]
    assert exact_match(live.openai, "dates@1", DATES.held_out()[:20]).exact_match >= 0.9


def test_the_first_ready_version_goes_live_and_later_ones_wait_for_a_promote(live: Live, dates_v2: str) -> None:
    alias = live.dock.adapters.get("dates").alias("production")
    assert alias is not None
    assert alias.shown == "1"


def test_the_gate_measured_parity_with_the_trainer_before_the_version_was_offered(live: Live, dates_v1: str) -> None:
    version = live.dock.adapters.version(dates_v1)
    assert version.state == "ready"
    assert version.parity is not None
    assert version.parity["status"] == "verified"


def test_the_model_list_names_base_adapter_and_versions(live: Live, dates_v2: str) -> None:
    listed = {model.id for model in live.openai.models.list()}
    assert {BASE, "dates", "dates@1", "dates@2"} <= listed
