"""A flood on one hot adapter, or on the base model, does not starve a cold adapter."""

from __future__ import annotations

import pytest
from support.live_server import BASE, Live
from support.marker_traffic import Board, Callers, Rollouts, Said, ask

from benchmarks.markers import QUESTIONS, Marker

pytestmark = pytest.mark.campaign

FLOOD = 128  # callers, eight times what the engine runs at once (live_server.py)
NUM_ASKED = 8


@pytest.mark.parametrize("hot", ["hot", BASE])
def test_a_cold_adapter_is_answered_while_a_flood_waits(live: Live, markers: list[Marker], hot: str) -> None:
    board = Board()
    suffix = "base" if hot == BASE else "adapter"
    cold = f"cold-beside-{suffix}"
    Rollouts(live, board, markers, [cold, *([] if hot == BASE else [hot])]).begin()
    board.aliases, board.versions = (hot,), ()
    with Callers(live.openai, board, FLOOD) as flood:
        asked = [ask(live.openai, cold, QUESTIONS[number % len(QUESTIONS)]) for number in range(NUM_ASKED)]
    assert [said.code for said in (*asked, *flood.said) if said.code] == []
    assert {said.text for said in asked} == {board.golden[f"{cold}@1"]}
    overtaken = [_ended_within(flood.said, said) for said in asked]
    print(f"{len(flood.said)} answers to the flood; {overtaken} of them while each cold request waited")
    # In the order of arrival it would be all that wait before it: FLOOD less what runs.
    assert max(overtaken) < FLOOD / 2


def _ended_within(flood: list[Said], said: Said) -> int:
    return sum(said.started < other.ended < said.ended for other in flood)
