"""Whether the runs learn: loss with what interrupted them, and bits per byte, over tokens.

Each chart takes the runs that are compared, and is None where there is nothing to draw. One run
alone has a color for each thing that is measured, of several each has its own. How well the
machine does is watching.py's, the long context is context.py's.
"""

from collections.abc import Sequence
from itertools import chain

from matplotlib.axes import Axes

from retnet.report import style
from retnet.report.reading import RunRecord, details, series, tokens_at, validation_sets
from retnet.report.style import INK, MUTED, PAPER, TRAIN, VALIDATION, Chart, color_of
from retnet.training.curve import dot, limits, smoothed

# {event: what its mark is called, its shape, whether it is a fault}
MARKS = {
    "resumed": ("restart", "|", False),
    "skipped": ("skipped step", "v", True),
    "rolled_back": ("rolled back", "<", True),
    "save_failed": ("save failed", "x", True),
    "straggler": ("straggler", "d", True),
    "diverged": ("diverged", "X", True),
    "hung": ("hung", "X", True),
    "failed": ("failed", "X", True),
}
COUNTED = ("restart", "skipped step", "straggler")
_MARK_ROW = 16  # pixels
Label = tuple[float, str, str]


def loss(records: list[RunRecord]) -> Chart | None:
    """Training loss, smoothed over its faint raw values, and validation loss, over tokens; below
    it a mark for all that interrupted the run."""
    if not any(series(record, "loss")[0] for record in records):
        return None
    rows = mark_rows(records)
    room = _MARK_ROW * len(rows)
    words = [words for record in records for words in _loss_words(record, len(records))]
    words += [words for words, *_ in rows]
    figure, axes = style.panel(
        *("Loss", "nats per token"),
        wide=True,
        height=356 + room,
        bottom=40 + room,
        right=max(120, style.room_for(words)),
    )
    labels, seen, all_shown = [], [], []
    for index, record in enumerate(records):
        own = _draw_losses(axes, record, index, alone=len(records) == 1)
        labels += own
        values = series(record, "loss")[1]
        seen += values
        for name in _sets_drawn(record, len(records)):
            all_shown += series(record, f"val/{name}/loss")[1]
    axes.set_ylim(*limits(seen, all_shown))
    axes.set_xlim(0, furthest(records) * 1.005)
    style.label_ends(axes, labels)
    style.name_x(axes, "tokens")
    _draw_marks(axes, rows)
    caption = "Bold: the training loss, smoothed; faint: as it was logged; dots: held-out text."
    if len(records) > 1:
        caption += " The numbers are of held-out text, of a run without any of the training loss."
    if rows:
        caption += " Below, what came between."
    return Chart("loss", figure, caption, wide=True)


def _sets_drawn(record: RunRecord, runs: int) -> list[str]:
    """Of one run all validation sets that have a finite loss, of several the first one each."""
    known = [name for name in validation_sets(record) if series(record, f"val/{name}/loss")[0]]
    return known[: None if runs == 1 else 1]


def _loss_words(record: RunRecord, runs: int) -> list[str]:
    """What stands at the ends of one run's lines, in the order of `_draw_losses`."""
    values = series(record, "loss")[1]
    tail = f"{smoothed(values)[-1]:.3f}" if values else ""
    sets = [(name, series(record, f"val/{name}/loss")[1]) for name in _sets_drawn(record, runs)]
    if runs == 1:
        return [f"train  {tail}"] + [f"{name}  {held[-1]:.3f}" for name, held in sets]
    end = f"{sets[0][1][-1]:.3f}" if sets else tail
    return [f"{style.brief(record.name, 28)}  {end}"]


def _draw_losses(axes: Axes, record: RunRecord, index: int, alone: bool) -> list[Label]:
    steps, values = series(record, "loss")
    if not steps:
        return []
    color = TRAIN if alone else color_of(index)
    smooth = smoothed(values)
    draw_smooth(axes, tokens_at(record, steps), values, smooth, color)
    ends = smooth[-1:]
    colors = [color]
    for number, name in enumerate(_sets_drawn(record, 1 if alone else 2)):
        at, held = series(record, f"val/{name}/loss")
        held_color = (VALIDATION if number == 0 else color_of(number + 1)) if alone else color
        axes.plot(
            tokens_at(record, at), held, "o-",
            color=held_color, linewidth=1.2, markersize=5, markeredgecolor=PAPER,
        )  # fmt: skip
        ends.append(held[-1])
        colors.append(held_color)
    words = _loss_words(record, 1 if alone else 2)
    ends = ends if alone else ends[-1:]  # of several runs, the end of the held-out line is labeled
    return list(zip(ends, words, colors, strict=False))


def draw_smooth(
    axes: Axes, x: Sequence[float], values: list[float], smooth: list[float], color: str
) -> None:
    """Raw values faint, smoothed ones above them."""
    axes.plot(*style.thinned(x, values), color=color, alpha=0.25, linewidth=1)
    shape, cut = dot(smooth), len(smooth) > 1  # a dot alone is at the edge
    axes.plot(*style.thinned(x, smooth), shape, color=color, linewidth=2, clip_on=cut)


def mark_rows(records: list[RunRecord]) -> list[tuple[str, str, str, list[float]]]:
    """(words, shape, color, tokens) for each kind of interruption of each run, eight at most."""
    rows = []
    for index, record in enumerate(records):
        for kind, (word, shape, fault) in MARKS.items():
            steps = [
                event["step"]
                for event in record.events
                if event.get("event") == kind and isinstance(event.get("step"), int)
            ]
            if not steps:
                continue
            many = f"{len(steps)} {word}s" if word in COUNTED else f"{len(steps)} x {word}"
            words = many if len(steps) > 1 else word
            if len(records) > 1:
                words = f"{style.brief(record.name)}: {words}"
            own = (VALIDATION if fault else INK) if len(records) == 1 else color_of(index)
            rows.append((words, shape, own, tokens_at(record, steps)))
    return rows[:8]


def _draw_marks(axes: Axes, rows: list[tuple[str, str, str, list[float]]]) -> None:
    """A row of marks for each kind, below the numbers of the axis."""
    height, pixel = axes.get_window_extent().height, axes.get_xlim()[1] / style.WIDE
    for number, (words, shape, color, tokens) in enumerate(rows):
        place = -(46 + _MARK_ROW * number) / height
        tokens = list({round(token / pixel): token for token in tokens}.values())  # one a pixel
        axes.plot(
            tokens, [place] * len(tokens), shape, color=color, linewidth=0,
            markersize=10 if shape == "|" else 6, markeredgewidth=1.6, clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        axes.annotate(
            words, (1, place), xycoords="axes fraction", xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=11, color=color,
        )  # fmt: skip


def furthest(records: list[RunRecord]) -> float:
    """Tokens at the last line of metrics of the run that went furthest; at least 1."""
    ends = (
        tokens_at(record, [max(line["step"] for line in record.metrics)])[0]
        for record in records
        if record.metrics
    )
    return max(chain(ends, (1.0,)))


def bits(records: list[RunRecord]) -> Chart | None:
    """Bits per byte of each validation set, beside what `gzip -9` and a unigram need."""
    alone, lines = len(records) == 1, []
    for index, record in enumerate(records):
        for number, name in enumerate(validation_sets(record)[: None if alone else 1]):
            steps, values = series(record, f"val/{name}/bits_per_byte")
            own = (VALIDATION if number == 0 else color_of(number + 1)) if alone else None
            if steps:
                words = f"{name if alone else style.brief(record.name)}  {values[-1]:.3f}"
                line = tokens_at(record, steps), values, words, own or color_of(index)
                lines.append(line)
    if not lines:
        return None
    easy = {
        f"{word}  {entry[key]:.3f}": entry[key]
        for entry in details(records[0], "yardsticks")[-1:]
        for key, word in (("gzip", "gzip -9"), ("unigram", "unigram"))
        if isinstance(entry.get(key), int | float)
    }
    right = style.room_for([*(words for _, _, words, _ in lines), *easy])
    figure, axes = style.panel("Bits per byte", "of held-out text", right=right)
    for x, values, _, color in lines:
        axes.plot(x, values, "o-", color=color, markersize=4.5, markeredgecolor=PAPER)
    for value in easy.values():
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(*limits([], [*chain(*(line[1] for line in lines)), *easy.values()]))
    axes.set_xlim(0, furthest(records) * 1.005)
    labels = [(values[-1], words, color) for _, values, words, color in lines]
    style.label_ends(axes, labels + [(value, words, MUTED) for words, value in easy.items()])
    style.name_x(axes, "tokens")
    caption = "Independent of the tokenizer, so runs with different ones compare."
    if easy:
        caption += " Dashed: what compressors without training need."
    return Chart("bits_per_byte", figure, caption)
