"""The loss curve of a run as a picture, drawn from metrics.jsonl alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retnet.training.metrics import read_lines

if TYPE_CHECKING:  # imported where it draws: a mistake on the command line need not wait for it
    from matplotlib.axes import Axes

_INK, _FAINT, _TRAIN, _VALIDATION = "#1f2933", "#cbd2d9", "#2a6fdb", "#d9480f"


def loss_curve(folder: Path) -> Path | None:
    """Writes `folder/loss.png` from `folder/metrics.jsonl`; None where there is no loss yet."""
    lines = read_lines(folder / "metrics.jsonl")
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    validation: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("val/") and key.endswith("/loss") and value is not None:
                validation.setdefault(key[4:-5], []).append((line["step"], value))
    if not train:
        return None
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state, and looks for a display.
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)  # inches around it
    axes = figure.add_subplot()
    _style(axes, title=_plain(f"Loss of {folder.name}"))
    steps, losses = zip(*train, strict=True)
    smooth = smoothed(list(losses))
    axes.plot(steps, losses, dot(losses), color=_TRAIN, alpha=0.25, linewidth=1.0)
    axes.plot(steps, smooth, color=_TRAIN, linewidth=2.0, label=f"train  {smooth[-1]:.3f}")
    for index, (name, points) in enumerate(sorted(validation.items())):
        at, values = zip(*points, strict=True)
        color = _VALIDATION if index == 0 else f"C{index + 3}"
        axes.plot(
            at, values, "o-", color=color, markersize=4.5, markeredgecolor="white",
            linewidth=1.2, label=_plain(f"validation {name}  {values[-1]:.3f}"),
        )  # fmt: skip
    others = [value for points in validation.values() for _, value in points]
    axes.set_ylim(*limits(list(losses), others))
    axes.set_xlim(0, max(steps[-1], 1) * 1.01)
    axes.legend(frameon=False, labelcolor=_INK, loc="upper right")
    path = folder / "loss.png"
    figure.savefig(path)
    return path


def dot(values: Sequence[float]) -> str:
    """What a curve of these values is drawn with: one value alone is a dot, since a line of one
    point is nothing."""
    return "o-" if len(values) == 1 else "-"


def smoothed(values: list[float], share: float = 0.05) -> list[float]:
    """A running mean over `share` of the curve, centered. It narrows towards the start, where the
    loss falls steeply, and stops at the end, where a single step would be noise."""
    half = max(1, round(len(values) * share / 2))
    # Each window anew: a running sum would never get rid of one huge value's rounding.
    array, result = np.array(values), []
    for index in range(len(values)):
        side = min(half, index)
        result.append(float(array[index - side : index + side + 1].mean()))
    return result


def limits(losses: list[float], others: list[float]) -> tuple[float, float]:
    """Bottom and top of the axis of a curve with these values, in which a spike does not flatten
    the rest; the `others` are all shown."""
    ordered = sorted(losses)
    top = max([*ordered[int(0.98 * (len(ordered) - 1)) :][:1], *losses[:1], *others])
    bottom = min([*ordered[:1], *others, top])
    margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 0.1
    return bottom - margin, top + margin


def _plain(text: str) -> str:
    """A `$` in a name stands for itself, and is no formula's beginning."""
    return text.replace("$", r"\$")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=12)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss (nats per token)", color=_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
