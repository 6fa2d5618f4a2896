"""Who may talk: rank 0's own lines reach the terminal, everything else goes to a log file.

Libraries print, log, warn and start compilers; to catch all of it, the process's stdout and stderr
themselves are pointed at the log, and the terminal is kept aside.
"""

import faulthandler
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Terminal:
    """The terminal that the process was started from."""

    out: TextIO
    "Its stdout; goes nowhere for a process that does not speak."
    err: TextIO
    "Its stderr, for every process: only for what ends the run."


def claim_terminal(log: Path, speaks: bool) -> Terminal:
    """Sends this process's output to `log` (appended) and returns the terminal it had."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    out = os.fdopen(os.dup(1) if speaks else os.open(os.devnull, os.O_WRONLY), "w", buffering=1)
    err = os.fdopen(os.dup(2), "w", buffering=1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.captureWarnings(True)
    faulthandler.enable()
    return Terminal(out, err)
