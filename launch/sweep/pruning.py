"""Which points of a sweep are not worth their next steps: those that are worse at a step than half
of the others were there. From the metrics files alone, so that it works for every sweeper."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from launch.sweep.points import lines_of, objective_of

OTHERS = 3
"Points that must have been at a step before one is measured against them there."


def history(folder: Path, metric: str = "") -> dict[int, float]:
    """The objective of a run by step, as far as it has been measured."""
    found = {}
    for line in lines_of(folder / "metrics.jsonl"):
        value = objective_of([line], metric)
        if value is not None:
            found[int(line["step"])] = value
    return found


def hopeless(
    histories: Mapping[str, Mapping[int, float]], running: Iterable[str], after: int
) -> dict[str, int]:
    """The points to end among those that run, each with the step at which it was measured: their
    newest one, from step `after` on."""
    found = {}
    for name in running:
        own = histories[name]
        step = max(own, default=-1)
        others = [other[step] for key, other in histories.items() if key != name and step in other]
        if step >= after and len(others) >= OTHERS and own[step] > median(others):
            found[name] = step
    return found
