"""What a sweep says while it goes: a line for everything that happens, and on a terminal one more
that is written over, with what runs just now."""

import json
import shutil
import time
from pathlib import Path
from typing import TextIO

BETWEEN = 1.0
"Seconds between two writings of the last line."
CLEAR = "\r\x1b[2K"
"Empties the line of a terminal."
TAIL = 4096
"Bytes at the end of metrics.jsonl, among which there is a whole line."


class Display:
    """Where a sweep's words go."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._live = out, out.isatty()
        self._shown, self._again = False, 0.0

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self._out.write(f"{CLEAR * self._shown}{sentence}\n")
        self._out.flush()
        self._shown = False

    def show(self, running: list[tuple[str, Path, int]], waiting: int) -> None:
        """The line of what runs, (name, folder, steps) of each, about once a second."""
        if not self._live or time.monotonic() < self._again:
            return
        self._again = time.monotonic() + BETWEEN
        parts = [f"{name} {progress(folder, steps)}" for name, folder, steps in running]
        text = " | ".join([*parts, f"{waiting} wait"] if waiting else parts)
        width = shutil.get_terminal_size().columns - 1
        self._out.write(f"{CLEAR}{text[:width]}")
        self._out.flush()
        self._shown = True


def progress(folder: Path, steps: int) -> str:
    """How far a run is: its newest line of metrics in words."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return "begins"
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:  # being written, or the first one here, which is cut
            continue
        if isinstance(line, dict) and line.get("loss") is not None:
            return f"step {line['step']} of {steps}, loss {line['loss']:.3f}"
    return "begins"
