from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import assistant, chat, examples, facts, user
from tunedock_registry.data.split import auto_fraction, split

ROWS = examples(*facts(40))


def test_the_fraction_falls_with_the_size() -> None:
    assert [auto_fraction(n) for n in (9, 10, 999, 1_000, 100_000)] == [0.0, 0.1, 0.1, 0.05, 0.005]


def test_a_split_is_the_same_for_the_same_seed_and_keeps_file_order() -> None:
    train, held = split(ROWS, 0.1, seed=3)
    assert split(ROWS, 0.1, seed=3) == (train, held)
    assert split(ROWS, 0.1, seed=4) != (train, held)
    assert [e.line for e in train] == sorted(e.line for e in train)
    assert len(held) == 4


def test_no_fraction_means_no_validation() -> None:
    assert split(ROWS, 0.0, seed=1) == (ROWS, [])


def test_a_single_example_is_trained_on() -> None:
    assert split(ROWS[:1], 0.5, seed=1) == (ROWS[:1], [])


def test_repeated_examples_never_stand_on_both_sides() -> None:
    rows = examples(*(chat(user(f"question {n % 13}"), assistant(f"answer {n % 13}")) for n in range(100)))
    for seed in range(20):
        train, held = split(rows, 0.2, seed)
        assert held
        assert not {str(e).split("messages")[1] for e in train} & {str(e).split("messages")[1] for e in held}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.5), st.integers(0, 2**31))
def test_a_split_loses_and_repeats_nothing(count: int, fraction: float, seed: int) -> None:
    train, held = split(ROWS[:count], fraction, seed)
    assert sorted(e.line for e in [*train, *held]) == list(range(1, count + 1))
    assert train
    assert len(held) <= max(1, round(count * fraction))
