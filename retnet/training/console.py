"""The run on a console: a live display on a terminal, plain lines into a file or a pipe.

It is the one place that prints. It shows what `Metrics` hands it and computes the time left.
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


class Console:
    """One line per `show`, or a live block of two lines with everything else scrolling above."""

    def __init__(self, stream: TextIO, *, total_steps: int, run_name: str) -> None:
        """Draws nothing before `start`."""
        self._stream = stream
        self._rich = RichConsole(file=stream, highlight=False)
        self._total = total_steps
        self._name = run_name
        self._step = 0
        self._values: dict[str, Any] = {}
        self._pace: float | None = None  # seconds a step
        self._since = time.perf_counter()
        self._live: Live | None = None

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
        """Takes new values; those not given keep what they were on the live display."""
        now = time.perf_counter()
        if step > self._step:
            pace = (now - self._since) / (step - self._step)
            kept = pace if self._pace is None else self._pace
            self._pace = _MEMORY * kept + (1.0 - _MEMORY) * pace
            self._step = step
        self._since = now  # what came between two looks at one step, an evaluation, was no step
        self._values.update(values)
        if self._live is None:
            width = len(str(self._total))
            parts = [f"step {step:>{width}} of {self._total}", *describe(values), self._left()]
            self.say(" | ".join(part for part in parts if part))

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
        head.add_row(
            Text(self._name, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._step, width=32),
            Text(f"step {self._step} of {self._total}"),
            Text(self._left(), style="cyan"),
        )
        block = Table.grid()
        block.add_row(head)
        block.add_row(Text("  ".join(describe(self._values)), style="dim"))
        return block


def describe(values: dict[str, Any]) -> list[str]:
    """The known values as short words with units, in a fixed order; unknown ones are left out, and
    so is a wait for data below 1 %: it says that all is well."""
    shown = []
    for key, value in values.items():
        if value is None or not isinstance(value, int | float):
            continue
        if key in _WORDS:
            shown.append((list(_WORDS).index(key), _WORDS[key](value)))
        elif key.startswith("val/") and key.endswith("/loss"):
            shown.append((len(_WORDS), f"val {key[4:-5]} {value:.4f}"))
        elif key.startswith("val/") and key.endswith("/bits_per_byte"):
            shown.append((len(_WORDS), f"{value:.4f} bits/byte"))
    return [words for _, words in sorted(shown, key=lambda pair: pair[0]) if words]


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
    "data_wait": lambda value: f"waits for data {100 * value:.0f}%" if value >= 0.01 else "",
}
