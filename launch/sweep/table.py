"""A sweep as a table: its points with what they came to, the best first; and the same as CSV.

It reads what the runs wrote, so that it may be asked for at any time.
"""

import csv
import math
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from launch.sweep.points import lines_of, objective_of, short_names, state_of
from launch.sweep.record import Record


class Row(NamedTuple):
    """A point."""

    point: str
    swept: dict[str, Any]
    step: int | None
    steps: int
    "Those of the whole run."
    loss: float | None
    objective: float | None
    tokens_per_second: float | None
    "The median of those that were logged."
    state: str


def rows(folder: Path) -> list[Row]:
    """The points of the sweep in a folder, the best first, and last those without an objective."""
    record = Record(folder)
    found = [_row(folder, name, record) for name in record.points]

    def order(row: Row) -> tuple[float, str]:
        return (math.inf if row.objective is None else row.objective, row.point)

    return sorted(found, key=order)


def _row(folder: Path, name: str, record: Record) -> Row:
    line = record.points[name]
    run, steps = folder / name, int(line["steps"])
    metrics = lines_of(run / "metrics.jsonl")
    losses = [one for one in metrics if one.get("loss") is not None]
    state = state_of(run, steps, pruned=name in record.pruned)
    # what a model was worth before it diverged is nobody's choice
    objective = None if state == "diverged" else objective_of(metrics, line.get("objective", ""))
    speeds = [one["tokens_per_second"] for one in metrics if one.get("tokens_per_second")]
    return Row(
        name,
        line["overrides"],
        metrics[-1].get("step") if metrics else None,
        steps,
        losses[-1]["loss"] if losses else None,
        objective,
        median(speeds) if speeds else None,
        state,
    )


def measure(folder: Path) -> str:
    """What the points are compared by, as the head of a column."""
    lines = Record(folder).points.values()
    return next((line["objective"] for line in lines if line.get("objective")), "val loss")


def write_csv(found: list[Row], file: Path) -> None:
    """One line for each point, with whole keys and unrounded numbers."""
    keys = _keys(found)
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        last = ("step", "steps", "loss", "objective", "tokens_per_second", "state", "point")
        writer.writerow([*keys, *last])
        for row in found:
            values = [row.swept.get(key, "") for key in keys]
            writer.writerow([*values, *(getattr(row, name) for name in last)])


def as_text(found: list[Row], objective: str) -> str:
    """The table for a terminal."""
    keys = _keys(found)
    short = short_names(keys)
    head = [*(short[key] for key in keys), "step", "loss", objective, "tokens/s", "state"]
    lines = [head]
    for row in found:
        lines.append(
            [
                *(_value(row.swept.get(key, "")) for key in keys),
                "" if row.step is None else f"{row.step} of {row.steps}",
                _number(row.loss, ".4f"),
                _number(row.objective, ".4f"),
                _number(row.tokens_per_second, ",.0f"),
                row.state,
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    # values that name something stand left, numbers right
    left = {column for column in range(len(keys)) if not _all_numbers(found, keys[column])}
    left.add(len(head) - 1)
    texts = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)


def _keys(found: list[Row]) -> list[str]:
    return sorted({key for row in found for key in row.swept})


def _all_numbers(found: list[Row], key: str) -> bool:
    values = [row.swept[key] for row in found if key in row.swept]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
