"""The picture of a sweep: for each swept parameter its points' loss curves laid over each other,
and what the points came to over its values. It starts nothing and knows no sweep's states.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from retnet.report import style
from retnet.report.reading import RunRecord, last_step, read_run, series, tokens_at
from retnet.report.style import INK, MUTED, PAPER, Chart
from retnet.training.curve import limits, smoothed

Point = tuple[dict[str, Any], Path, float | None]
_ROW, _GAP = 300, 90  # pixels
_FEW = 8  # values


@style.no_formulas()
def sweep_picture(points: Sequence[Point], file: Path) -> None:
    """Writes a PNG with a row for each swept parameter.

    points: (swept values, run folder, objective or None) each; a folder without a run has no curve.
    A point's color is its value of the row's parameter.
    """
    points = [({k: _as_written(v) for k, v in swept.items()}, *rest) for swept, *rest in points]
    keys = sorted({key for swept, _, _ in points for key in swept})
    figure = Figure(
        figsize=(style.WIDE / 72, max(len(keys), 1) * _ROW / 72), dpi=72, facecolor=PAPER
    )
    records = {}
    for _, folder, _ in points:
        try:
            records[folder] = read_run(folder)
        except ValueError:  # not begun yet
            continue
    for row, key in enumerate(keys):
        top = row * _ROW
        height = len(keys) * _ROW
        shares = [(48, 330 + _GAP), (style.WIDE - 330, 40)]
        left, right = (
            figure.add_axes(
                style.inside(style.WIDE, height, *margins, height - top - _ROW + 48, top + 56)
            )
            for margins in shares
        )
        values = _in_order([swept[key] for swept, _, _ in points if key in swept])
        colors = dict(zip(map(str, values), _colors(values), strict=True))
        mine = [point for point in points if key in point[0]]
        _curves(left, key, mine, records, colors)
        under_way = {folder for folder, record in records.items() if not _is_over(record)}
        _outcomes(right, key, mine, values, colors, under_way)
    style.write_png(Chart("sweep", figure, ""), file)


def _as_written(value: Any) -> Any:
    """Numbers as they are; true, false and null as the command line has them."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def _in_order(values: list[Any]) -> list[Any]:
    """Each value once, numbers by size and words by the alphabet."""
    each = list({str(value): value for value in values}.values())
    return sorted(each, key=(float if _are_numbers(each) else str))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _colors(values: Sequence[Any]) -> list[Any]:
    """Numbers from dark to light, words apart from each other."""
    if _are_numbers(values) and len(values) > 2:
        scale = matplotlib.colormaps["viridis"]
        return [scale(0.8 * place / (len(values) - 1)) for place in range(len(values))]
    return [style.color_of(place) for place in range(len(values))]


def _curves(
    axes: Axes,
    key: str,
    points: Sequence[Point],
    records: dict[Path, RunRecord],
    colors: dict[str, Any],
) -> None:
    """Training losses over tokens; a value's name stands at the end of its best curve."""
    style.dress(axes)
    _title(axes, f"Loss by {key}", "nats per token, smoothed")
    seen, ends, furthest = [], {}, 1.0
    for swept, folder, _ in points:
        if folder not in records:
            continue
        record = records[folder]
        steps, values = series(record, "loss")
        if not steps:
            continue
        value, smooth = str(swept[key]), smoothed(values)
        x = tokens_at(record, steps)
        axes.plot(*style.thinned(x, smooth), color=colors[value], linewidth=1.8, alpha=0.9)
        seen.append(smooth)
        furthest = max(furthest, x[-1])
        ends[value] = min(smooth[-1], ends.get(value, smooth[-1]))
    if not seen:
        axes.set_axis_off()
        return
    bottom = min(chain(*seen))
    top = max(limits(values, [])[1] for values in seen)
    axes.set_ylim(bottom - 0.04 * (top - bottom), top)
    axes.set_xlim(0, furthest * 1.005)
    style.label_ends(axes, [(end, _cut(value, 14), colors[value]) for value, end in ends.items()])
    style.name_x(axes, "tokens")


def _is_over(record: RunRecord) -> bool:
    """Whether it took all its steps."""
    return last_step(record) >= record.config.get("steps", 0)


def _outcomes(
    axes: Axes,
    key: str,
    points: Sequence[Point],
    values: list[Any],
    colors: dict[str, Any],
    under_way: set[Path],
) -> None:
    """The objective over the values, hollow where it is not the last one yet; numbers that span
    much on a logarithmic axis."""
    done = [
        (swept[key], outcome, folder in under_way)
        for swept, folder, outcome in points
        if _is_finite(outcome)
    ]
    style.dress(axes)
    _title(axes, "Objective", f"by {key}; lower is better")
    if not done:
        axes.set_axis_off()
        return
    # A few values stand in their order, side by side; many numbers where they are.
    spread = _are_numbers(values) and len(values) > _FEW
    place = {str(value): value if spread else index for index, value in enumerate(values)}
    for value, outcome, hollow in done:
        color = colors[str(value)]
        fill, edge = (PAPER, color) if hollow else (color, PAPER)
        axes.plot(
            place[str(value)], outcome, "o",
            color=fill, markersize=8, markeredgecolor=edge, markeredgewidth=1.5 if hollow else 1,
        )  # fmt: skip
    for swept, _, outcome in points:
        if outcome is not None and not _is_finite(outcome):
            axes.annotate(
                "failed", (place[str(swept[key])], 1), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", fontsize=10, color=MUTED,
            )  # fmt: skip
    value, least, _ = min(done, key=lambda one: (one[2], one[1]))
    axes.annotate(
        f"{least:.4f}", (place[str(value)], least), xytext=(0, -9),
        textcoords="offset points", ha="center", va="top", fontsize=11, color=INK,
    )  # fmt: skip
    low, high = min(outcome for _, outcome, _ in done), max(outcome for _, outcome, _ in done)
    margin = (high - low) or 0.1
    axes.set_ylim(low - 0.22 * margin, high + 0.1 * margin)
    axes.xaxis.set_minor_locator(NullLocator())
    if not spread:
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_xticks(
            range(len(values)), [_cut(str(value), 60 // len(values)) for value in values]
        )
        return
    if min(values) > 0 and max(values) / min(values) >= 10:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short(value)))


def _title(axes: Axes, title: str, unit: str) -> None:
    for up, words, size, weight, color in (
        (34, title, 13, "bold", INK),
        (17, unit, 11, "normal", MUTED),
    ):
        axes.annotate(
            words, (0, 1), xycoords="axes fraction", xytext=(0, up), textcoords="offset points",
            va="center", fontsize=size, fontweight=weight, color=color,
        )  # fmt: skip


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _is_finite(value: float | None) -> bool:
    return value is not None and abs(value) != float("inf") and value == value
