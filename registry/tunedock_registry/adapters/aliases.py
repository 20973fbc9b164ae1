"""Moves of an alias: compare-and-swap, undo, weighted targets. Pure; the store applies what is planned here.

Every move has a revision, 1, 2, 3… `undo` of a move is the revision that a rollback returns to. A promotion can be undone
to the move before it; a rollback to wherever its target could be. So two rollbacks in a row go back two steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from tunedock_api.errors import BadInput, Conflict

from ..records import Target, VersionState

T = TypeVar("T")
MAX_TARGETS = 16


@dataclass(frozen=True)
class Move:
    """One entry of an alias's history, and the state after it. No targets means that the alias was deleted."""

    targets: tuple[Target, ...]
    revision: int
    undo: int | None


NEW = Move((), 0, None)


def check_targets(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Raises BadInput unless there are 1 to 16 distinct versions with positive weights."""
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise BadInput(f"An alias has 1 to {MAX_TARGETS} targets, not {len(targets)}.", param="targets")
    if len({target.version for target in targets}) != len(targets):
        raise BadInput("An alias names each version once.", param="targets")
    for target in targets:
        if not math.isfinite(target.weight) or not 0 < target.weight <= 1e6:
            raise BadInput(
                f"The weight of version {target.version} must be above 0, not {target.weight}.", param="targets"
            )
    return tuple(targets)


def plan_move(name: str, current: Move, targets: Sequence[Target], expected_revision: int | None) -> Move | None:
    """The next move, or None when the alias points there already.

    `expected_revision` None moves without comparing; 0 means that the alias must not exist.
    Raises Conflict (`alias_conflict`, details = the current state) when somebody else has moved it meanwhile.
    """
    _check_revision(name, current, expected_revision)
    if tuple(targets) == current.targets:
        return None
    return Move(tuple(targets), current.revision + 1, current.revision if current.targets else current.undo)


def plan_rollback(name: str, current: Move, history: Mapping[int, Move]) -> Move:
    """The move back to the previous targets. `history` maps revisions to moves. Raises BadInput when there is none."""
    if current.undo is None:
        raise BadInput(f"{name} has no earlier target to roll back to.", "invalid_state", param="alias")
    earlier = history[current.undo]
    return Move(earlier.targets, current.revision + 1, earlier.undo)


def _check_revision(name: str, current: Move, expected: int | None) -> None:
    if expected is None or expected == current.revision or (expected == 0 and not current.targets):
        return
    raise Conflict(
        f"{name} is at revision {current.revision}, not {expected}: somebody moved it. Read it again, then decide.",
        "alias_conflict",
        param="expected_revision",
        details=describe(current),
    )


def describe(move: Move) -> dict[str, object]:
    """The state as plain JSON."""
    targets = [{"version": target.version, "weight": target.weight} for target in move.targets]
    return {"revision": move.revision, "targets": targets}


def check_ready(adapter: str, targets: Sequence[Target], states: Mapping[int, VersionState]) -> None:
    """Raises Conflict (`version_not_ready`) unless every target is a version that may serve."""
    for target in targets:
        state = states.get(target.version)
        if state != "ready":
            why = "does not exist" if state is None else f"is {state}"
            raise Conflict(
                f"{adapter}@{target.version} {why}: an alias points to ready versions only.",
                "version_not_ready",
                param="version",
                details={"version": target.version, "state": state},
            )


def pick(shares: Sequence[tuple[float, T]], sticky_key: str) -> T:
    """The target of one caller. `shares` holds cumulative weights, in the order of the targets.

    The same key keeps its target; raising the weight of a later target only moves callers towards it.
    """
    point = int.from_bytes(blake2b(sticky_key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
    threshold = point * shares[-1][0]
    return next((item for bound, item in shares if threshold < bound), shares[-1][1])
