"""Who may talk: rank 0's own lines reach the terminal, everything else goes to a log file.

Libraries print, log, warn and start compilers; to catch all of it, the process's stdout and stderr
themselves are pointed at the log, and the terminal is kept aside.
"""

import faulthandler
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO


class LastingStream:
    """A stream that goes silent when its reader is gone: a closed pipe or a lost connection must
    not end a run that has weeks to go."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a text stream's `write`; never fails."""
        try:
            return self._stream.write(text)
        except OSError:
            self._stream = open(os.devnull, "w")
            return len(text)

    def flush(self) -> None:
        """As a text stream's `flush`; never fails."""
        try:
            self._stream.flush()
        except OSError:
            self._stream = open(os.devnull, "w")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass(frozen=True)
class Terminal:
    """The terminal that the process was started from."""

    out: TextIO
    "Its stdout; goes nowhere for a process that does not speak."
    err: TextIO
    "Its stderr, for every process: only for what ends the run."


def refuse(sentence: str, rank: int, code: int) -> NoReturn:
    """Ends a process that has not begun, with a sentence from rank 0 alone."""
    if rank == 0:
        sys.stderr.write(f"{sentence}\n")
    else:
        time.sleep(3)  # launchers end all processes when one has ended: let rank 0 be the first
    sys.exit(code)


def claim_terminal(log: Path, speaks: bool) -> Terminal:
    """Sends this process's output to `log` (appended) and returns the terminal it had; ends the
    process with a sentence and code 2 where that cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        refuse(
            f"{log} cannot be written ({error.strerror}): free it, or take another name=...", 0, 2
        )
    sys.stdout.flush()
    sys.stderr.flush()
    out = os.fdopen(os.dup(1) if speaks else os.open(os.devnull, os.O_WRONLY), "w", buffering=1)
    err = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.captureWarnings(True)
    faulthandler.enable()
    return Terminal(LastingStream(out), LastingStream(err))
