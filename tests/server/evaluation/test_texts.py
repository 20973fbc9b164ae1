"""Measures of answers against references, and what is more than chance."""

from __future__ import annotations

import random

import pytest
from tunedock_server.evaluation.bootstrap import paired
from tunedock_server.evaluation.texts import MEASURES, bleu, exact_match, rouge_l, token_f1


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_every_measure_is_one_for_the_reference_and_zero_for_something_else(measure: object) -> None:
    assert callable(measure)
    assert measure(' {"date": "2026-01-02"}\n', '{"date": "2026-01-02"}') == pytest.approx(1.0)
    assert measure("quite unlike", "seven green apples") == pytest.approx(0.0, abs=0.05)


def test_measures_by_hand() -> None:
    assert exact_match("Yes", "yes") == 0.0
    assert token_f1("the cat sat", "the cat stood up") == pytest.approx(2 * 2 / 7)
    assert rouge_l("sat the cat", "the cat sat") == pytest.approx(2 * 2 / 6), "order counts"
    assert token_f1("sat the cat", "the cat sat") == 1.0, "order does not count"
    assert 0.0 < bleu("the cat sat on the mat", "the cat sat on a mat") < 1.0
    assert token_f1("", "") == 1.0
    assert token_f1("", "x") == 0.0


def test_a_constant_gain_is_certain_and_noise_is_not() -> None:
    rng = random.Random(1)
    theirs = [rng.gauss(2.0, 1.0) for _ in range(40)]
    gain = paired([value - 0.5 for value in theirs], theirs)
    assert [gain.mean, gain.low, gain.high] == pytest.approx([-0.5, -0.5, -0.5])
    noise = paired([rng.gauss(2.0, 1.0) for _ in range(40)], theirs)
    assert noise.low < 0.0 < noise.high


def test_examples_weigh_by_their_tokens() -> None:
    assert paired([1.0, 0.0], [0.0, 0.0], weights=[3.0, 1.0]).mean == 0.75


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        paired([], [])
