"""How far back a model remembers: loss by position, the pass key, and what the decays allow.

Each chart takes the runs that are compared, and is none where there is nothing to draw.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from retnet.models.rotary import log_decays
from retnet.report import style
from retnet.report.reading import RunRecord, details, last, names_between
from retnet.report.style import FAINT, INK, MUTED, TRAIN, VALIDATION, Chart, color_of

_MOST_TIMES = 16  # that the loss by position is drawn of
LITTLE = 0.01  # share of a token's weight that is left where we call it forgotten


def loss_by_position(records: list[RunRecord]) -> Chart | None:
    """Loss over the place in the context; of one run each time it was asked, of many times some
    between the first and the last, of several runs the last time each."""
    curves = []  # (entry, words, color, opacity)
    for index, record in enumerate(records):
        found = [entry for entry in details(record, "positions") if _bucket_losses(entry)[0].size]
        if len(records) > 1:
            found = found[-1:]
        if len(found) > _MOST_TIMES:
            found = [found[round(at)] for at in np.linspace(0, len(found) - 1, _MOST_TIMES)]
        for age, entry in enumerate(found):
            opacity = 0.25 + 0.75 * (age + 1) / len(found)
            words = f"step {entry['step']:,}" if len(records) == 1 else style.brief(record.name, 28)
            color = TRAIN if len(records) == 1 else color_of(index)
            curves.append((entry, words, color, 1.0 if age == len(found) - 1 else 0.7 * opacity))
    if not curves:
        return None
    shown = {0, len(curves) - 1} if len(records) == 1 else set(range(len(curves)))
    right = style.room_for([words for _, words, _, _ in curves])
    figure, axes = style.panel(
        "Loss by position", "nats per token, over the place in the context", wide=True, right=right,
        height=300,
    )  # fmt: skip
    labels, furthest, lowest, highest = [], 0, math.inf, -math.inf
    for place, (entry, words, color, opacity) in enumerate(curves):
        x, values = _bucket_losses(entry)
        newest, smooth = opacity == 1.0, _neighbors_mean(x, values)
        if newest:
            axes.plot(x, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(x, smooth, color=color, alpha=opacity, linewidth=2.2 if newest else 1.3)
        if place in shown:
            labels.append((smooth[-1], words, color if newest else MUTED))
        furthest = max(furthest, x[-1])
        lowest, highest = min(lowest, smooth.min()), max(highest, smooth.max())
    margin = 0.15 * (highest - lowest) or 0.1
    axes.set_ylim(lowest - margin, highest + margin)
    trained = curves[-1][0]["length"]
    _context_axis(axes, trained, furthest)
    style.label_ends(axes, labels)
    joined = any(entry.get("joined") for entry, *_ in curves)
    caption = "Bold: smoothed. Right of the line the context is longer than any in training."
    if joined:
        caption += " No held-out document was long enough: documents are joined end to end."
    return Chart("loss_by_position", figure, caption, wide=True)


def _bucket_losses(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the buckets in tokens, and the losses of those that have one."""
    values = np.array([math.nan if v is None else v for v in entry.get("loss", [])], dtype=float)
    middles = (np.arange(len(values)) + 0.5) * entry.get("bucket", 1)
    kept = np.isfinite(values)
    return middles[kept], values[kept]


def _neighbors_mean(x: np.ndarray, values: np.ndarray, times: float = 1.3) -> np.ndarray:
    """The mean over the places up to `times` further and nearer: on the logarithmic axis a window
    of one width, where a bucket alone is a few hundred tokens' noise."""
    near = (x[None] <= times * x[:, None]) & (x[:, None] <= times * x[None])  # [place, neighbor]
    return (near * values).sum(axis=1) / near.sum(axis=1)


def _context_axis(axes: Axes, trained: int, furthest: float) -> None:
    """Doublings of the length in tokens, with the trained one marked."""
    axes.set_xscale("log", base=2)
    start = max(trained / 16, 1)
    axes.set_xlim(start, furthest * 1.03)
    ticks = [trained * 2.0**power for power in range(-4, 11)]
    ticks = [tick for tick in ticks if start <= tick <= furthest * 1.03]
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())

    def words(tick: float, _: object) -> str:
        times = tick / trained
        return f"{times:g}x  {tick:,.0f}" if times >= 1 else f"{tick:,.0f}"

    axes.xaxis.set_major_formatter(FuncFormatter(words))
    axes.axvline(trained, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "trained length", (trained, 1), xycoords=("data", "axes fraction"), xytext=(5, -2),
        textcoords="offset points", va="top", fontsize=11, color=MUTED,
    )  # fmt: skip


def loss_at_lengths(records: list[RunRecord]) -> list[tuple[str, dict[str, float]]]:
    """(run, {"1x": loss over the last trained length before that place, ...}), the newest."""
    found = []
    for record in records:
        names = names_between(record, "position/", "/loss")
        values = {name: last(record, f"position/{name}/loss") for name in names}
        found.append((record.name, {k: v for k, v in values.items() if v is not None}))
    return [(name, values) for name, values in found if values]


def passkeys(records: list[RunRecord]) -> list[Chart]:
    """A map for each run, four at most: how often the model says the pass key again, by the length
    of the text and the place of the key in it."""
    charts = []
    for index, record in enumerate(records[:4]):
        found = details(record, "passkey")
        if found and found[-1].get("accuracy"):
            name = "" if len(records) == 1 else f": {style.brief(record.name, 28)}"
            charts.append(_passkey(found[-1], name, index))
    return charts


def _passkey(entry: dict[str, Any], name: str, index: int) -> Chart:
    lengths, depths = entry["lengths"], entry["depths"]
    figure, axes = style.panel(
        f"Pass key{name}", "right answers, and below nats for a token of the right one",
        left=76, height=110 + 38 * len(depths), bottom=44,
    )  # fmt: skip
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(depths), 0)
    for column, row in np.ndindex(len(lengths), len(depths)):
        share, nats = entry["accuracy"][column][row], entry["nats"][column][row]
        # Opacity, not a palette: pale on white paper and pale on black paper.
        axes.fill_between(
            [column + 0.03, column + 0.97], row + 0.04, row + 0.96, color=TRAIN, linewidth=0,
            alpha=0.08 + 0.92 * (share or 0.0),
        )  # fmt: skip
        ink = "#fffffe" if (share or 0.0) > 0.5 else INK  # on the cell, whatever the paper is
        cell = ((-0.12, 12, "" if share is None else f"{share:.0%}"),
                (0.24, 9, "" if nats is None else f"{nats:.1f}"))  # fmt: skip
        for shift, size, words in cell:
            axes.text(
                column + 0.5, row + 0.5 + shift, words, ha="center", va="center", fontsize=size,
                color=ink,
            )  # fmt: skip
    times = [length / entry["length"] for length in lengths]
    words = [f"{t:g}x  {length:,}" for t, length in zip(times, lengths, strict=True)]
    axes.set_xticks([column + 0.5 for column in range(len(lengths))], words)
    axes.set_yticks([row + 0.5 for row in range(len(depths))], [_depth(depth) for depth in depths])
    style.name_x(axes, "tokens of text")
    trials = entry.get("trials", 1)
    caption = (
        f"Five digits, hidden at that depth and asked for at the end: {trials} "
        f"{'try' if trials == 1 else 'tries'} a cell, at step {entry['step']:,}. "
        "Guessing is right once in 100,000; a sure answer costs 0 nats."
    )
    return Chart("passkey" if index == 0 else f"passkey_{index + 1}", figure, caption)


def _depth(depth: float) -> str:
    return {0.0: "beginning", 1.0: "end"}.get(depth, f"{depth:.0%} in")


def decays(records: list[RunRecord]) -> Chart | None:
    """For each head of each kind of decay among the runs: after how many tokens half of a token's
    weight is left, and after how many 1 % is."""
    kinds: dict[tuple[int, bool], tuple[str, str]] = {}  # to the first run's name and color
    for index, record in enumerate(records):
        model = record.config.get("model") or {}
        if isinstance(model.get("num_heads"), int):
            key = model["num_heads"], bool(model.get("use_lm_decay"))
            kinds.setdefault(key, (style.brief(record.name, 28), color_of(index)))
    if not kinds:
        return None
    rows = [(kind, head) for kind in kinds for head in range(kind[0])]
    step = 22 if len(rows) <= 12 else 11
    longest = max(len(name) for name, _ in kinds.values()) if len(kinds) > 1 else 4
    figure, axes = style.panel(
        "Memory of each head", "tokens until a token's weight is down to half, and to 1 %",
        wide=True, left=max(76, 30 + 7 * longest), right=90, height=104 + step * len(rows),
    )  # fmt: skip
    axes.set_xscale("log")
    axes.grid(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    names, most = [], 1.0
    for row, (kind, head) in enumerate(rows):
        rate = -float(log_decays(*kind)[head])
        half, little = math.log(2) / rate, math.log(1 / LITTLE) / rate
        name, color = kinds[kind] if len(kinds) > 1 else ("head", TRAIN)
        axes.plot([half, little], [row, row], color=color, linewidth=3, alpha=0.35)
        axes.plot([half], [row], "o", color=color, markersize=6)
        axes.plot([little], [row], "|", color=color, markersize=9, markeredgewidth=2)
        if step > 11:
            _beside(axes, half, row, style.short(round(half)), -8, "right")
            _beside(axes, little, row, style.short(round(little)), 8, "left")
        names.append(f"{name} {head + 1}")
        most = max(most, little)
    every = 1 if step > 11 else 4
    axes.set_yticks(range(0, len(rows), every), names[::every])
    trained = records[0].config.get("sequence_length")
    axes.set_xlim(8, most * 2)
    if trained:
        axes.axvline(trained, color=VALIDATION, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"trained length {trained:,}", (trained, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 8), textcoords="offset points", va="center", ha="center",
            fontsize=11, color=VALIDATION,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.grid(True, color=FAINT, linewidth=0.7)
    style.name_x(axes, "tokens back")
    caption = (
        "Dot: half of a token's weight is left; bar: 1 %. The decays are fixed, the same in every "
        "layer; what a head makes of them is learned."
    )
    return Chart("decays", figure, caption, wide=True)


def _beside(axes: Axes, x: float, row: int, words: str, shift: int, side: str) -> None:
    axes.annotate(
        words, (x, row), xytext=(shift, 0), textcoords="offset points", ha=side, va="center",
        fontsize=10, color=MUTED,
    )  # fmt: skip
