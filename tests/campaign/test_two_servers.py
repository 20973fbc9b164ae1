"""A second server on the same registry follows a promote within two seconds, and loads what it is told to."""

from __future__ import annotations

import time

import pytest
from openai import OpenAI
from support.live_server import SMALL, Live
from support.marker_traffic import Board, Rollouts, ask
from tunedock import TuneDock

from benchmarks.markers import QUESTIONS, Marker
from examples.serving import ServerProcess

CONVERGED_S = 2.0


@pytest.mark.campaign
def test_a_second_server_answers_with_what_the_first_promoted_within_two_seconds(
    live: Live, markers: list[Marker], unshared_marker: Marker
) -> None:
    board = Board()
    rollouts = Rollouts(live, board, [*markers[:2], unshared_marker], ["shared"])
    rollouts.begin()
    rollouts.push("shared")
    rollouts.push("shared")  # version 3 is proven here, and nobody asks for it there
    second = ServerProcess(live.server.home, environment={**SMALL, "TUNEDOCK_TRAINER": "false"})
    with second, OpenAI(base_url=second.base_url, api_key="any") as client:
        assert ask(client, "shared", QUESTIONS[0]).model == "shared@1"
        for version in (2, 1, 2):
            live.dock.adapters.promote(f"shared@{version}")
            moved = time.monotonic()
            while (said := ask(client, "shared", QUESTIONS[0])).model != f"shared@{version}":
                assert not said.code, said.message
            assert said.started - moved < CONVERGED_S
            assert said.text == board.golden[f"shared@{version}"]
        with TuneDock(second.base_url) as dock:
            assert dock.adapters.version("shared@3").residency == "stored"
            assert dock.adapters.load("shared@3").residency in ("host", "slot")
        assert ask(client, "shared@3", QUESTIONS[0]).text == board.golden["shared@3"]
