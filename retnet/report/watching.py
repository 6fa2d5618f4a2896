"""Whether a run is well: rates and norms, speed, waiting, memory, layers and ranks, over tokens.

Each chart takes the runs that are compared, and is None where there is nothing to draw.
"""

import math
from collections.abc import Callable
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from retnet.report import style
from retnet.report.curves import draw_smooth, furthest
from retnet.report.reading import RunRecord, names_between, series, tokens_at
from retnet.report.style import MUTED, TRAIN, VALIDATION, Chart, color_of
from retnet.training.curve import dot, limits, smoothed

MOST_COLUMNS = 800  # of a heat map: more than the page has pixels for it


def over_tokens(
    records: list[RunRecord],
    key: str,
    title: str,
    unit: str,
    caption: str,
    *,
    smooth: bool = True,
    scale: float = 1.0,
    log: bool = False,
    say: Callable[[float], str] = style.short,
) -> Chart | None:
    """One metric of every run over tokens, in a small panel; `scale` brings it to `unit`."""
    drawn = []
    for index, record in enumerate(records):
        steps, values = series(record, key)
        values = [value * scale for value in values]
        if log:
            kept = [(s, v) for s, v in zip(steps, values, strict=True) if v > 0]
            steps, values = [s for s, _ in kept], [v for _, v in kept]
        if steps:
            shown = smoothed(values) if smooth else values
            drawn.append((record.name, tokens_at(record, steps), values, shown, color_of(index)))
    if not drawn:
        return None
    alone = len(records) == 1
    ends = [shown[-1] for *_, shown, _ in drawn]
    words = [say(end) if alone else f"{style.brief(name)}  {say(end)}"
             for end, (name, *_) in zip(ends, drawn, strict=True)]  # fmt: skip
    figure, axes = style.panel(title, unit, right=style.room_for(words))
    for _, x, values, shown, color in drawn:
        if smooth:
            draw_smooth(axes, x, values, shown, color)
        else:
            axes.plot(*style.thinned(x, shown), dot(shown), color=color, linewidth=2)
    everything = list(chain(*(values for _, _, values, *_ in drawn)))
    if log:
        _log_axis(axes, everything)
    else:
        axes.set_ylim(0, 1.05 * limits(everything, ends)[1] or 1)
    axes.set_xlim(0, furthest(records) * 1.005)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value) if value else "0"))
    style.label_ends(
        axes,
        [(end, text, color) for end, text, (*_, color) in zip(ends, words, drawn, strict=True)],
    )
    style.name_x(axes, "tokens")
    caption = f"{caption} Bold: smoothed." if smooth else caption
    return Chart(key.replace("/", "_"), figure, caption)


def _log_axis(axes: Axes, values: list[float]) -> None:
    """Room for all of it, with a number at least at two heights."""
    axes.set_yscale("log")
    low, high = min(values), max(values)
    axes.set_ylim(low / 1.15, high * 1.15)
    steps = (1, 2, 5) if high / low < 50 else (1,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=8))
    axes.yaxis.set_minor_locator(LogLocator(base=10, subs=(), numticks=8))


def _percent(value: float) -> str:
    return f"{value:.3g} %"


def learning(records: list[RunRecord]) -> list[Chart | None]:
    """Learning rate and gradient norm."""
    return [
        over_tokens(
            records, "learning_rate", "Learning rate", "of each step", "", smooth=False,
            say=lambda value: style.short(float(f"{value:.3g}")),
        ),
        over_tokens(
            records, "grad_norm", "Gradient norm", "before clipping, log scale",
            "Jumps before a loss does.", log=True, say=lambda value: f"{value:.3g}",
        ),
    ]  # fmt: skip


def speed(records: list[RunRecord]) -> list[Chart | None]:
    """Throughput, MFU, waiting for data, memory, and the ranks' times."""
    return [
        over_tokens(
            records, "tokens_per_second", "Throughput", "tokens per second, all ranks",
            "Evaluations and saves are not counted.",
        ),
        over_tokens(
            records, "mfu", "Model FLOP utilization", "of the devices' peak",
            "FLOPs that the model needs, over the peak of the data sheet.",
            scale=100, say=_percent,
        ),
        over_tokens(
            records, "data_wait", "Waiting for data", "share of the time, worst rank",
            "Time in which the loop had no batch.", scale=100, say=_percent,
        ),
        over_tokens(
            records, "peak_memory", "Peak memory", "GB, worst rank",
            "On a GPU what tensors held, on a CPU the whole process.",
            smooth=False, scale=1e-9, say=lambda value: f"{value:.3g} GB",
        ),
        step_times(records),
    ]  # fmt: skip


def step_times(records: list[RunRecord]) -> Chart | None:
    """How long a rank computes in a step, the middle one and the slowest; who that is, by name."""
    drawn = []
    for index, record in enumerate(records):
        steps, middle = series(record, "step_time/median")
        slow = series(record, "step_time/slowest")[1]
        if not steps or len(slow) != len(steps):
            continue
        ranks = [int(rank) for rank in series(record, "step_time/slowest_rank")[1]]
        often = max(sorted(set(ranks)), key=ranks.count) if ranks else None
        whom = "slowest" if often is None else f"slowest, most often {often}"
        name = "" if len(records) == 1 else f"{style.brief(record.name)}: "
        x, middle, slow = tokens_at(record, steps), smoothed(middle), smoothed(slow)
        color = TRAIN if len(records) == 1 else color_of(index)
        drawn.append((x, middle, f"{name}median rank", color, "-"))
        color = VALIDATION if len(records) == 1 else color
        drawn.append((x, slow, f"{name}{whom}", color, (0, (2, 1.5))))
    if not drawn:
        return None
    right = style.room_for([words for _, _, words, _, _ in drawn])
    figure, axes = style.panel("Step time by rank", "seconds of its own", right=right)
    if len(records) == 1:
        for rank in names_between(records[0], "step_time/rank_", ""):
            steps, values = series(records[0], f"step_time/rank_{rank}")
            own = style.thinned(tokens_at(records[0], steps), smoothed(values))
            axes.plot(*own, color=MUTED, linewidth=1, alpha=0.6)
    for x, values, _, color, line in drawn:
        marker = "o" if len(x) == 1 else ""
        axes.plot(
            *style.thinned(x, values), color=color, linewidth=2, linestyle=line, marker=marker
        )
    everything = list(chain(*(values for _, values, *_ in drawn)))
    axes.set_ylim(0, limits(everything, [])[1])
    axes.set_xlim(0, furthest(records) * 1.005)
    labels = [(values[-1], words, color) for _, values, words, color, _ in drawn]
    style.label_ends(axes, labels)
    style.name_x(axes, "tokens")
    caption = "The forward passes, smoothed; a rank that stays far above the others holds up all."
    return Chart("step_time", figure, caption)


def norms_by_layer(records: list[RunRecord]) -> list[Chart | None]:
    """Heat maps of the first run: the gradient's norm and the activations' size, layer by layer."""
    own, name = records[0], "" if len(records) == 1 else f" of {style.brief(records[0].name)}"
    return [
        _heat_map(own, "grad_norm/", f"Gradient norm by layer{name}", "Of each layer's weights."),
        _heat_map(
            own, "activation_rms/", f"Activations by layer{name}",
            "Root mean square of what each layer hands on.",
        ),
    ]  # fmt: skip


def _heat_map(record: RunRecord, head: str, title: str, caption: str) -> Chart | None:
    """Layers from below upwards, over tokens; the color is the logarithm."""
    groups = sorted(names_between(record, head, ""), key=_depth)
    steps = sorted({step for group in groups for step in series(record, head + group)[0]})
    if len(steps) < 2:
        return None
    grid = np.full((len(groups), len(steps)), np.nan)
    for row, group in enumerate(groups):
        at, values = series(record, head + group)
        columns = np.searchsorted(steps, at)
        grid[row, columns] = np.where(np.array(values) > 0, values, np.nan)
    logs = np.log10(grid)
    if not np.isfinite(logs).any():
        return None
    figure, axes = style.panel(title, "log scale", left=76, right=62)
    x, logs = _even(np.array(tokens_at(record, steps)), logs)
    half = (x[-1] - x[0]) / (2 * (len(x) - 1))
    span = (x[0] - half, x[-1] + half, -0.5, len(groups) - 0.5)
    drawn = axes.imshow(
        logs, aspect="auto", origin="lower", interpolation="none", extent=span, cmap="viridis"
    )
    axes.grid(False)
    every = -(-len(groups) // 9)  # nine names at most, the first and the last with them
    shown = sorted({*range(0, len(groups), every), len(groups) - 1})
    axes.set_yticks(shown, [groups[row].replace("layer.", "layer ") for row in shown])
    style.name_x(axes, "tokens")
    _color_scale(axes, drawn)
    return Chart(head.strip("/") + "_by_layer", figure, caption)


def _even(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of one width, as an image has, for values [row, place] at uneven places: in each the
    largest of those that fall into it, else those of the nearest place."""
    middles = np.linspace(x[0], x[-1], min(len(x), MOST_COLUMNS))
    width = middles[1] - middles[0] or 1.0
    even = np.full((len(values), len(middles)), np.nan)
    np.fmax.at(even.T, np.rint((x - x[0]) / width).astype(int), values.T)
    after = np.searchsorted(x, middles).clip(1, len(x) - 1)
    nearest = np.where(middles - x[after - 1] <= x[after] - middles, after - 1, after)
    return middles, np.where(np.isnan(even), values[:, nearest], even)


def _color_scale(axes: Axes, drawn: object) -> None:
    figure, place = axes.figure, axes.get_position()
    bar = figure.add_axes((place.x1 + 10 / style.HALF, place.y0, 8 / style.HALF, place.height))
    words = FuncFormatter(lambda value, _: style.short(float(f"{10**value:.2g}")))
    scale = figure.colorbar(drawn, cax=bar, format=words)
    scale.outline.set_visible(False)
    scale.ax.tick_params(colors=MUTED, length=0, labelsize=10)
    scale.set_ticks(_round_values(*drawn.get_clim()))


def _round_values(low: float, high: float) -> list[float]:
    """Logarithms of numbers like 0.2 and 5 between these two, six at most; where there are none,
    four at even distances."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1,)):
        logs = [power + math.log10(step) for power in powers for step in steps]
        found = [log for log in logs if low <= log <= high]
        if len(found) <= 6:
            break
    return found[:: -(-len(found) // 6)] if len(found) > 1 else list(np.linspace(low, high, 4))


def _depth(group: str) -> tuple[int, str]:
    """The embedding below all layers, the final norm and the head above."""
    order = {"embedding": 0, "norm": 2, "head": 3}
    return order.get(group, 1 if group.startswith("layer") else 4), group
