"""What counts as a stall while an adapter loads."""

from __future__ import annotations

import pytest

from benchmarks.lora_swap import stalls

TIMES = [0.0, 1.0, 2.0, 5.0, 6.0, 7.0, 11.0, 12.0, 13.0]  # gaps of 3 s and of 4 s among those of 1 s


@pytest.mark.parametrize(
    ("moment", "stall"),
    [
        ((2.5, 2.6), 2.0),  # within the long gap
        ((1.5, 1.6), 2.0),  # the long gap is the next one
        ((0.5, 0.6), 0.0),
        ((5.5, 5.6), 0.0),  # the long gap is over, and the one of 4 s comes later
        ((1.5, 8.0), 3.0),
        ((12.5, 12.9), 0.0),  # nothing comes after the last one
    ],
)
def test_a_stall_is_of_the_gaps_that_a_load_touches_and_of_the_next(moment: tuple[float, float], stall: float) -> None:
    assert stalls([moment], TIMES) == [stall]
