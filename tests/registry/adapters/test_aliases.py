from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate

import pytest
from tunedock_api.errors import BadInput, Conflict
from tunedock_registry.adapters.aliases import NEW, Move, check_ready, check_targets, pick, plan_move, plan_rollback
from tunedock_registry.records import Target


def _history(*numbers: int) -> dict[int, Move]:
    moves, current = {}, NEW
    for number in numbers:
        move = plan_move("a@x", current, [Target(number)], None)
        assert move is not None
        moves[move.revision] = current = move
    return moves


def test_the_first_move_makes_revision_one() -> None:
    assert plan_move("a@x", NEW, [Target(1)], 0) == Move((Target(1),), 1, None)


def test_a_move_with_the_seen_revision_goes_through_and_with_another_conflicts() -> None:
    current = _history(1, 2)[2]
    assert plan_move("a@x", current, [Target(3)], 2) == Move((Target(3),), 3, 2)
    with pytest.raises(Conflict) as caught:
        plan_move("a@x", current, [Target(3)], 1)
    assert caught.value.details == {"revision": 2, "targets": [{"version": 2, "weight": 1.0}]}
    assert caught.value.kind.http_status == 412


def test_expecting_no_alias_conflicts_with_an_existing_one() -> None:
    with pytest.raises(Conflict):
        plan_move("a@x", _history(1)[1], [Target(2)], 0)


def test_moving_to_where_it_points_is_no_move() -> None:
    assert plan_move("a@x", _history(1)[1], [Target(1)], None) is None


def test_two_rollbacks_go_back_two_steps_and_a_promotion_after_them_can_be_undone() -> None:
    history = _history(1, 2, 3)
    first = plan_rollback("a@x", history[3], history)
    assert first == Move((Target(2),), 4, 1)
    history[4] = first
    second = plan_rollback("a@x", first, history)
    assert second == Move((Target(1),), 5, None)
    history[5] = second
    with pytest.raises(BadInput, match="no earlier target"):
        plan_rollback("a@x", second, history)
    promoted = plan_move("a@x", second, [Target(9)], None)
    assert promoted is not None
    assert plan_rollback("a@x", promoted, history).targets == (Target(1),)


def test_a_rollback_after_deletion_brings_the_alias_back() -> None:
    history = _history(1, 2)
    deleted = plan_move("a@x", history[2], [], None)
    assert deleted is not None
    assert plan_rollback("a@x", deleted, history).targets == (Target(2),)


@pytest.mark.parametrize(
    "targets",
    [
        [],
        [Target(1), Target(1)],
        [Target(1, 0)],
        [Target(1, -1)],
        [Target(1, math.nan)],
        [Target(1, math.inf)],
        [Target(number) for number in range(1, 18)],
    ],
)
def test_targets_that_make_no_sense_are_refused(targets: list[Target]) -> None:
    with pytest.raises(BadInput):
        check_targets(targets)


def test_only_ready_versions_may_be_targets() -> None:
    check_ready("a", [Target(1)], {1: "ready"})
    with pytest.raises(Conflict, match="a@2 is rejected"):
        check_ready("a", [Target(1), Target(2)], {1: "ready", 2: "rejected"})
    with pytest.raises(Conflict, match="a@3 does not exist"):
        check_ready("a", [Target(3)], {})


def _shares(*weights: float) -> list[tuple[float, int]]:
    return [(bound, number) for number, bound in enumerate(accumulate(weights))]


def test_traffic_follows_the_weights() -> None:
    counts = Counter(pick(_shares(80, 20), f"user-{n}") for n in range(20_000))
    assert counts[1] / 20_000 == pytest.approx(0.2, abs=0.015)


def test_a_caller_keeps_its_target_and_more_weight_only_moves_callers_towards_it() -> None:
    for user in (f"user-{n}" for n in range(2_000)):
        small, large = pick(_shares(95, 5), user), pick(_shares(70, 30), user)
        assert pick(_shares(95, 5), user) == small
        assert large >= small
