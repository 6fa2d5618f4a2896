"""What a comparison is to show, and whether it did: the last lines of a bench.

Not here: how anything is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.measure import Row


@dataclass(frozen=True)
class Goal:
    """What one contender is to reach."""

    contender: str
    most: float | None = None
    "In the comparison's unit."
    times: dict[str, float] = field(default_factory=dict)
    """Names' beginnings, with | between alternatives -> how many times the contender's figure the
    least one of those names is at least: above 1 the contender is so many times as fast."""
    of_floor: float | None = None
    "The share of the floor that its figure is at least."


@dataclass(frozen=True)
class Verdict:
    """One wish and what came of it."""

    found: str
    wanted: str
    met: bool | None
    "None: there was nothing to compare with."


def judge_goals(goals: Sequence[Goal], rows: Sequence["Row"], unit: str) -> list[Verdict]:
    """Every wish of `goals` by the rows that were measured."""
    verdicts = []
    for goal in goals:
        ours = next((row for row in rows if row.name == goal.contender), None)
        if ours is None or ours.wrong:
            why = "was not measured" if ours is None else "is wrong"
            verdicts.append(Verdict(f"{goal.contender} {why}", "to be right", False))
            continue
        if goal.most is not None:
            met = ours.median <= goal.most
            wanted = f"at most {goal.most:g} {unit}"
            verdicts.append(Verdict(f"{ours.median:.3g} {unit}", wanted, met))
        if goal.of_floor is not None and ours.floor:
            share = ours.floor / ours.median
            wanted = f"at least {goal.of_floor:.0%} of the floor"
            verdicts.append(Verdict(f"{share:.0%} of the floor", wanted, share >= goal.of_floor))
        verdicts += [_against(ours, rows, *wish) for wish in goal.times.items()]
    return verdicts


def _against(ours: "Row", rows: Sequence["Row"], names: str, factor: float) -> Verdict:
    """The best of the rows so named beside ours."""
    wanted = f"{names.replace('|', ', ')} at least {factor:.3g}x ours"
    others = [row for row in rows if row.name.startswith(tuple(names.split("|")))]
    right = [row for row in others if not row.wrong and row is not ours]
    if not right:
        why = "is wrong" if others else "is not there"
        return Verdict(why, wanted, None)
    best = min(right, key=lambda row: row.median)
    ratio = best.median / ours.median if ours.median else float("inf")
    return Verdict(f"{best.name}: {ratio:.3g}x ours", wanted, ratio >= factor)
