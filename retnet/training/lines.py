"""Files of JSON lines that lose none: not to a kill, and not to a disk that is full for a while.

A line is written at once and whole. Where the disk takes none, lines wait in memory for the next
write, in their order. What the lines say is metrics.py's.
"""

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import Any

_WAITING = 10_000  # lines that are kept in memory, at most


class LineFile:
    """A file that lines are added to."""

    def __init__(self, file: Path) -> None:
        """Opens it, or makes it; OSError where that cannot be. A line that a killed run, or a full
        disk, left torn at its end goes: the next one would be part of it."""
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        whole = file.read_bytes().rfind(b"\n") + 1
        if whole < os.fstat(self._file).st_size:
            os.ftruncate(self._file, whole)
        self._waiting: deque[bytes] = deque()

    def add(self, entry: dict[str, Any], sync: bool = False) -> OSError | None:
        """Writes an entry after those that wait, and with `sync` waits until they are on the disk.
        What went wrong, where they wait now; the 10,001st that does is dropped."""
        if len(self._waiting) < _WAITING:
            self._waiting.append(line_of(entry).encode())
        return self.flush(sync)

    def flush(self, sync: bool = False) -> OSError | None:
        """Tries again to write what waits; None once it is written."""
        try:
            while self._waiting:
                line = self._waiting[0]
                # A full disk may take the beginning of a line: the rest of it goes on there.
                written = os.write(self._file, line)
                self._waiting[0] = line[written:]
                if not self._waiting[0]:
                    self._waiting.popleft()
            if sync:
                os.fsync(self._file)
        except OSError as error:
            return error
        return None

    @property
    def waiting(self) -> int:
        """Lines that are in memory alone."""
        return len(self._waiting)

    def close(self) -> None:
        """Once; what waits then is lost."""
        self.flush()
        os.close(self._file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line is left out.

    Raises:
        RuntimeError: another line is no JSON.
    """
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    # A line counts when its newline is there: the last piece is empty or torn.
    objects = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            objects.append(json.loads(line))
        except ValueError as error:
            raise RuntimeError(f"{file} line {number} is no JSON: {error}.") from error
    return objects


def truncate_after(file: Path, step: int) -> None:
    """Cuts the file before the first line of a later step than `step`, in place: a full disk has no
    room for another."""
    steps = [entry["step"] for entry in read_lines(file)]
    kept = next((at for at, each in enumerate(steps) if each > step), len(steps))
    os.truncate(file, sum(map(len, file.read_bytes().splitlines(keepends=True)[:kept])))


def line_of(entry: dict[str, Any]) -> str:
    """An entry as a line of strict JSON: a number that is not finite, at any depth, is null."""
    return json.dumps(_finite(entry), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
