"""Somebody else on the same machine: sees the command line of every process, as `ps` shows it, and
nothing more."""

import threading
import time
from pathlib import Path

EVERY = 0.02
"Seconds between two looks: shorter than any process lives that goes over ssh."


class Onlooker:
    """Looks while a `with` block lasts; `seen` is the command lines in which a word stood."""

    def __init__(self, word: str) -> None:
        self.seen: set[str] = set()
        self._word = word.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Onlooker":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = file.read_bytes()
                except OSError:  # it has just ended
                    continue
                if self._word in line:
                    self.seen.add(line.replace(b"\0", b" ").decode(errors="replace"))
            time.sleep(EVERY)
