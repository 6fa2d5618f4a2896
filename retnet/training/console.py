"""The run on a console: a live display on a terminal, plain lines into a file or a pipe.

It is the one place that prints. It shows what `Metrics` hands it and computes the time left. The
display has three lines, how far, how well and how fast, and a fourth while something is not well.
"""

import time
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_REFRESHES = 1  # a second: the time left counts seconds, and four took 0.8 % of a core
_MEMORY = 0.8  # share of the old pace in the new one: the time left should not jump
_SETS = 3  # validation sets that are shown: the first ones
_WAITS = 0.05  # share of the time without data from which on it is a trouble
_TROUBLES = ("files", "save", "skipped", "rank", "data")  # the worst first: the line may be cut
_WELL_AGAIN = 10  # looks without another skipped step after which the last one is no news


class Console:
    """One line per `show`, or a live block with everything else scrolling above."""

    def __init__(self, stream: TextIO, *, total_steps: int, run_name: str) -> None:
        """Draws nothing before `start`."""
        self._stream = stream
        self._rich = RichConsole(file=stream, highlight=False)
        self._total = total_steps
        self._name = run_name
        self._step = 0
        # These two are replaced, never changed: the display's thread reads them.
        self._values: dict[str, Any] = {}
        self._pace: float | None = None  # seconds a step
        self._since = time.perf_counter()
        self._troubles: dict[str, str] = {}
        self._live: Live | None = None
        self._looks = 0  # since the last skipped step
        self._traced = False  # since the last look: what took its time were not the steps

    def start(self, step: int) -> None:
        """Begins at `step` steps taken."""
        self._step = step
        self._since = time.perf_counter()
        if self._stream.isatty() and self._live is None:
            self._live = Live(
                get_renderable=self._draw,
                console=self._rich,
                refresh_per_second=_REFRESHES,
                # what others print belongs into the log, where stdout and stderr lead already
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Takes new values; those not given keep what they were on the live display. Where none of
        them is one that is shown, a pipe gets no line."""
        now, words = time.perf_counter(), describe(values)
        # What is not shown may be read long after its step, as the norms of layers are.
        if step > self._step and words:
            if "loss" in values and not self._traced:  # else an evaluation is in the time
                pace = (now - self._since) / (step - self._step)
                kept = pace if self._pace is None else self._pace
                self._pace = _MEMORY * kept + (1.0 - _MEMORY) * pace
            self._step, self._traced = step, False
        if step == self._step:
            self._since = now  # what came between two looks at one step, an evaluation, was no step
        self._values = self._values | values
        self._judge(values)
        if self._live is None and words:
            width = len(str(self._total))
            parts = [f"step {step:>{width}} of {self._total}", *words, self._left()]
            self.say(" | ".join(part for part in parts if part))

    def hear(self, event: str, fields: dict[str, Any]) -> None:
        """Takes note of what happened, where it is a trouble or the end of one."""
        if event in ("save_failed", "copy_failed"):
            self.trouble("save", f"{event.replace('_', ' ')} at step {fields.get('step')}")
        elif event in ("saved", "copied"):
            self.trouble("save", None)
        elif event == "straggler":
            self.trouble("rank", f"rank {fields['rank']} ({fields['host']}) is slow")
        elif event == "skipped":
            self._looks = 0
            self.trouble("skipped", f"step {fields['step'] + 1} skipped")
        elif event == "profiled":
            self._traced = True

    def trouble(self, kind: str, words: str | None) -> None:
        """Shows that something is not well; with None, that it is well again."""
        others = {each: told for each, told in self._troubles.items() if each != kind}
        self._troubles = others if words is None else others | {kind: words}

    def _judge(self, values: dict[str, Any]) -> None:
        """What the numbers say of the troubles."""
        if (waits := values.get("data_wait")) is not None:
            words = f"waits for data {100 * waits:.0f}% of the time"
            self.trouble("data", words if waits > _WAITS else None)
        if (median := values.get("step_time/median")) is not None:
            if values["step_time/slowest"] < 1.1 * median:
                self.trouble("rank", None)
        if "loss" in values:
            self._looks += 1
            if self._looks > _WELL_AGAIN:
                self.trouble("skipped", None)

    def say(self, text: str) -> None:
        """Prints a line; above the display where there is one."""
        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last state of the display on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _left(self) -> str:
        if self._pace is None or self._step >= self._total:
            return ""
        # The pace is of whole steps; the clock runs on between two of them.
        seconds = self._pace * (self._total - self._step) - (time.perf_counter() - self._since)
        return f"{duration(max(seconds, 0.0))} left"

    def _draw(self) -> Table:
        head = Table.grid(padding=(0, 1), expand=False)
        for gives_way in (True, True, False, False):  # where it is narrow, name and bar do
            head.add_column(no_wrap=not gives_way, overflow="ellipsis")
        head.add_row(
            Text(self._name, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step, width=32),
            _line(f"step {self._step} of {self._total}", ""),
            _line(self._left(), "cyan"),
        )
        block = Table.grid()
        block.add_row(head)
        for words in (describe(self._values, LEARNING), describe(self._values, SPEED)):
            block.add_row(_line("  ".join(words), "dim"))
        if troubles := self._troubles:
            words = [troubles[kind] for kind in sorted(troubles, key=_TROUBLES.index)]
            block.add_row(_line("  ".join(words), "bold yellow"))
        return block


def _line(words: str, style: str) -> Text:
    """One line, cut where the terminal ends: a display that wraps leaves its old lines behind."""
    return Text(words, style=style, no_wrap=True, overflow="ellipsis")


def describe(values: dict[str, Any], part: tuple[str, ...] | None = None) -> list[str]:
    """The known values as short words with units, in a fixed order, or those of one `part` of them;
    unknown ones are left out, and so is a wait for data that is no trouble."""
    shown = {
        key: _WORDS[key](values[key]) for key in _WORDS if isinstance(values.get(key), int | float)
    }
    held_out = []
    for key in [key for key in values if key.startswith("val/") and key.endswith("/loss")][:_SETS]:
        if isinstance(values[key], int | float):
            held_out.append(f"val {key[4:-5]} {values[key]:.4f}")
        bits = values.get(f"{key[:-5]}/bits_per_byte")
        if isinstance(bits, int | float):
            held_out.append(f"{bits:.4f} bits/byte")
    known = [word for key, word in shown.items() if word and (part is None or key in part)]
    if part is None:
        return known + held_out
    return known + held_out if part == LEARNING else known


def duration(seconds: float) -> str:
    """Seconds as a person says them: 48 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


_WORDS = {
    "loss": lambda value: f"loss {value:.4f}",
    "tokens_per_second": lambda value: f"{_short(value)} tokens/s",
    "mfu": lambda value: f"MFU {100 * value:.1f}%",
    "learning_rate": lambda value: f"rate {value:.2e}",
    "grad_norm": lambda value: f"norm {value:.2f}",
    "peak_memory": lambda value: f"{_short(value)}B",
    "data_wait": lambda value: f"waits for data {100 * value:.0f}%" if value > _WAITS else "",
}
LEARNING = ("loss",)
SPEED = ("tokens_per_second", "mfu", "learning_rate", "grad_norm", "peak_memory")
