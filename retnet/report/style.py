"""How every picture of a report looks: its colors, its panels, its words, and how it becomes SVG.

A length here is a pixel of the page at its full width; a figure is drawn at 72 dots an inch, so
that points are pixels too. Colors of the page's own (ink, paper, ...) become CSS variables in the
SVG, and follow the reader's light or dark.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image, ImageOps

INK, MUTED, FAINT, PAPER = "#1f2933", "#66727f", "#cbd2d9", "#ffffff"
TRAIN, VALIDATION = "#2a6fdb", "#d9480f"
# Told apart by people who do not see red and green apart, too (Okabe and Ito's, after our two).
RUNS = (TRAIN, VALIDATION, "#009e73", "#cc79a7", "#b7860b", "#56b4e9", "#7b5ea7", "#7a6a53")
_PALE = 0.45  # share of white in the colors of the second eight runs
DARK = {INK: "#e4e9ee", MUTED: "#98a4b0", FAINT: "#36404b", PAPER: "#14181d", TRAIN: "#6ea3f7"}
"What takes the place of a color on dark paper; the others stay."
WIDE, HALF = 880, 430
_DPI = 72  # a point is a pixel
BORDER = 24  # pixels of a PNG around the picture
_SHARP = 2  # a PNG's pixels for one of the page
_LABEL, _LINE = 11, 14  # a label's font, and the room that it takes in height
MOST_POINTS = 1500  # of a drawn curve


class Chart(NamedTuple):
    """One picture and what is to be said of it."""

    name: str
    "Of its file."
    figure: Figure
    caption: str
    "How to read it, in words."
    wide: bool = False
    "Whether it takes the page's whole width."


def no_formulas() -> AbstractContextManager[None]:
    """While pictures are made: a `$` in a name stands for itself, and is no formula's beginning."""
    return matplotlib.rc_context({"text.parse_math": False})


def color_of(index: int) -> str:
    """The color of the run with that place in the comparison: sixteen, then they come again."""
    color = RUNS[index % len(RUNS)]
    if index // len(RUNS) % 2 == 0:
        return color
    return to_hex([_PALE + (1 - _PALE) * part for part in to_rgb(color)])


def panel(
    title: str,
    unit: str,
    *,
    wide: bool = False,
    height: int | None = None,
    left: int = 48,
    right: int = 16,
    bottom: int = 40,
    top: int = 56,
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, its title and below it its unit in words; the margins, in
    pixels, are for what stands there: `right` for labels at the ends of lines."""
    width, height = (WIDE, height or 356) if wide else (HALF, height or 246)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=PAPER)
    axes = figure.add_axes(inside(width, height, left, right, bottom, top))
    lines = ((14, title, 13, "bold", INK), (32, unit, _LABEL, "normal", MUTED))
    for down, words, size, weight, color in lines:
        figure.text(
            0, 1 - down / height, words, fontsize=size, fontweight=weight, color=color, va="center"
        )
    dress(axes)
    axes.xaxis.set_major_locator(MaxNLocator(max(2, min(6, (width - left - right) // 64))))
    return figure, axes


def inside(
    width: float, height: float, left: float, right: float, bottom: float, top: float
) -> tuple[float, float, float, float]:
    """Axes with these margins in pixels, as shares of the figure."""
    return (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )


def dress(axes: Axes) -> None:
    """Grid lines for reading values, and nothing that says nothing."""
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=MUTED, length=0, labelsize=_LABEL, pad=5)
    for axis, most in ((axes.xaxis, 6), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.set_minor_formatter(NullFormatter())


def name_x(axes: Axes, word: str) -> None:
    """Says what runs along the bottom, behind the last number there."""
    axes.annotate(
        word, (1, 0), xycoords="axes fraction", xytext=(0, -26), textcoords="offset points",
        ha="right", va="top", fontsize=_LABEL, color=MUTED,
    )  # fmt: skip


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Writes (height in the data, words, color) to the right of the axes, pushed apart where they
    would lie on each other; none where there is no room for all. Set the limits before."""
    room = axes.get_window_extent().height
    if not labels or _LINE * len(labels) > room + _LINE:
        return
    low, high = axes.get_ylim()
    to_share = axes.transScale + axes.transLimits  # of the axes' height, from data
    placed = sorted(
        (float(to_share.transform((1, min(max(y, low), high)))[1]) * room, words, color)
        for y, words, color in labels
    )
    heights = within(apart([height for height, _, _ in placed], _LINE), -_LINE, room, _LINE)
    for height, (_, words, color) in zip(heights, placed, strict=True):
        axes.annotate(
            words, (1, height / room), xycoords="axes fraction", xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=_LABEL, color=color,
        )  # fmt: skip


def apart(heights: list[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as keeps them `gap` from each other."""
    # Blocks that touch are joined and centered on what they stand for, from below upwards.
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _lowest(blocks[-1], gap) < _lowest(blocks[-2], gap) + gap * len(
            blocks[-2]
        ):
            upper = blocks.pop()
            blocks[-1] += upper
    return [_lowest(block, gap) + index * gap for block in blocks for index in range(len(block))]


def within(heights: list[float], low: float, high: float, gap: float) -> list[float]:
    """Sorted heights that are `gap` apart, moved as little as brings them between `low` and `high`,
    where they have room."""
    raised = [max(height, low + gap * place) for place, height in enumerate(heights)]
    return [min(h, high - gap * back) for back, h in enumerate(reversed(raised))][::-1]


def _lowest(block: list[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def room_for(words: Sequence[str]) -> int:
    """Pixels to the right of the axes for labels."""
    return 16 + round(6.6 * max((len(text) for text in words), default=0))


def brief(name: str, most: int = 16) -> str:
    """A run's name where there is little room: its end; of a sweep's point first its values alone,
    by which the points differ."""
    name = name.split("/")[-1]
    if len(name) > most:
        name = ", ".join(part.partition("-")[2] or part for part in name.split("__"))
    return name if len(name) <= most else f"…{name[1 - most :]}"


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` of a curve's points: of each piece the lowest and the highest, so that
    no spike is lost."""
    if len(x) <= MOST_POINTS:
        return list(x), list(y)
    pieces = MOST_POINTS // 2
    kept: list[int] = []
    for piece in range(pieces):
        inside_it = range(piece * len(x) // pieces, (piece + 1) * len(x) // pieces)
        ends = {min(inside_it, key=y.__getitem__), max(inside_it, key=y.__getitem__)}
        kept += sorted(ends)
    return [x[index] for index in kept], [y[index] for index in kept]


def short(value: float) -> str:
    """A number as a person writes it on an axis: 0.004, 512, 1.5k, 2.87M, 3e-5."""
    if value == 0:
        return "0"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def svg_of(chart: Chart) -> str:
    """The chart for the inside of an HTML page: no address, no font of its own, names that no other
    chart has."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        chart.figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    text = buffer.getvalue().decode()
    view = re.search(r'viewBox="[^"]*"', text).group()
    text = text[text.index("<g id=") :]
    text = re.sub(r' id="', f' id="{chart.name}-', text)
    text = re.sub(r"url\(#", f"url(#{chart.name}-", text)
    text = text.replace('xlink:href="#', f'href="#{chart.name}-').replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for color, variable in variables().items():
        text = re.sub(color, f"var({variable})", text, flags=re.IGNORECASE)
    return f'<svg {view} role="img" aria-label="{chart.name.replace("_", " ")}">{text}'


def variables() -> dict[str, str]:
    """{color: the CSS variable that stands for it}."""
    return {INK: "--ink", MUTED: "--muted", FAINT: "--faint", PAPER: "--paper", TRAIN: "--train"}


def write_png(chart: Chart, file: Path) -> None:
    """The same picture, twice as many pixels, on white; replaced whole."""
    buffer = io.BytesIO()
    chart.figure.savefig(buffer, dpi=_DPI * _SHARP, facecolor=PAPER, format="png")
    # 256 colors are all that a chart has, and take a third of the room.
    image = ImageOps.expand(Image.open(buffer).convert("RGB"), BORDER, PAPER)
    image = image.quantize(256, dither=Image.Dither.NONE)
    partial = file.with_name(f".{file.name}")
    image.save(partial, format="PNG", optimize=True)
    partial.replace(file)
