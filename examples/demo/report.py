"""What the demo claims, what it measured, and whether the claims hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .measure import Score
from .rollout import Rollout
from .tuning import Tuned

MIN_TUNED, MAX_BASE = 0.9, 0.2


@dataclass(frozen=True)
class Result:
    """One adapter: the base model's and the version's score on the same held-out questions."""

    tuned: Tuned
    base: Score
    score: Score


@dataclass(frozen=True)
class Claim:
    text: str
    holds: bool


def claims(results: Sequence[Result], rollout: Rollout, wrong: Sequence[str], strayed: Sequence[str]) -> list[Claim]:
    """Every promise of the demo; it fails when one does not hold."""
    learned = [
        Claim(
            f"{result.score.model}: exact match {result.base.exact_match:.2f} -> {result.score.exact_match:.2f} "
            f"(at most {MAX_BASE} before, at least {MIN_TUNED} after)",
            result.base.exact_match <= MAX_BASE and result.score.exact_match >= MIN_TUNED,
        )
        for result in results
    ]
    served = {answer.model for answer in rollout.answers}
    return [
        *learned,
        Claim(f"both versions answered while they changed: {', '.join(sorted(served))}", len(served) == 2),
        Claim(f"errors while versions changed: {len(rollout.errors)}", not rollout.errors),
        Claim(f"answers that do not match their version: {len(wrong)}", not wrong),
        Claim(f"answers from another version than was live: {len(strayed)}", not strayed),
    ]


def show(console: Console, results: Sequence[Result], rollout: Rollout, wrong: Sequence[str]) -> None:
    """The table of the adapters, and the one of the roll-out."""
    adapters = Table("adapter", "exact match, base", "tuned", "seconds to train", title="Tuning")
    for result in results:
        adapters.add_row(
            result.score.model,
            f"{result.base.exact_match:.2f}",
            f"{result.score.exact_match:.2f}",
            f"{result.tuned.seconds:.0f}",
        )
    console.print(adapters)
    table = Table("figure", "value", title=f"{rollout.old} -> {rollout.new} -> {rollout.old} under 8 streams")
    for name, value in _figures(rollout, wrong):
        table.add_row(name, value)
    console.print(table)


def _figures(rollout: Rollout, wrong: Sequence[str]) -> list[tuple[str, str]]:
    return [
        ("publish -> first answer, ms (gate included)", f"{1000 * rollout.publish_to_first_answer_s:.0f}"),
        ("promote, ms", f"{1000 * (rollout.promoted - rollout.promoting):.0f}"),
        ("rollback, ms", f"{1000 * (rollout.rolled_back - rollout.rolling_back):.0f}"),
        ("requests", str(len(rollout.answers))),
        ("errors", str(len(rollout.errors))),
        ("answers not matching their version", str(len(wrong))),
    ]
