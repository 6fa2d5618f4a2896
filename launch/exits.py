"""How a run ends, in one place: the exit codes, and what is said and written down for each.

A scheduler reads the code; where several machines hide it, the last line of events.jsonl, which
ending.py reads. What an error means is its type's to say; nothing is saved here.
"""

import json
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.terminal import Terminal

FINISHED, MACHINE_FAULT, USER_ERROR, DIVERGED, HUNG = 0, 1, 2, 3, 4
"""Exit codes. 0: finished, or asked to stop and saved; 1: the same command may go on; 2: the
command or the data must change; 3: so must the training; 4: nothing moved for limits.hang."""

Kinds = tuple[type[BaseException], ...]


def code_of(error: Exception, diverged: Kinds) -> int:
    """The exit code of a run that ends with this error."""
    if isinstance(error, diverged):
        return DIVERGED
    return USER_ERROR if isinstance(error, ValueError) else MACHINE_FAULT


@contextmanager
def ending(terminal: Terminal, rank: int, *, diverged: Kinds, plain: Kinds) -> Iterator[None]:
    """Exits with an error's code and its sentence: rank 0's alone where all ranks have the same
    one. Errors that nobody foresaw come with their traceback, `plain` ones without."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).exception("the run ends")
        code = code_of(error, diverged)
        if code == MACHINE_FAULT:
            told = error if isinstance(error, plain) else traceback.format_exc()
            terminal.err.write(f"rank {rank} failed:\n{told}\n")
        elif rank == 0:
            terminal.err.write(f"{error}\n")
        elif not _have_met():  # then it is this machine's own
            terminal.err.write(f"rank {rank} on {socket.gethostname()}: {error}\n")
        sys.exit(code)


def _have_met() -> bool:
    import torch.distributed as dist  # here: it takes seconds, and a watchdog needs the codes alone

    return dist.is_initialized()


@contextmanager
def noting(folder: Path, rank: int, *, diverged: Kinds) -> Iterator[None]:
    """Writes what ends a run into its events, as rank 0, where the run did not itself."""
    try:
        yield
    except Exception as error:
        code = code_of(error, diverged)
        if code != DIVERGED and rank == 0:
            kind = "" if code == USER_ERROR else f"{type(error).__name__}: "
            note(folder, "failed", code=code, why=f"{kind}{error}")
        raise


def note(folder: Path, kind: str, **fields: Any) -> None:
    """Appends an event where the run's own voice is not there any more; best effort."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError), (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time, "event": kind, **fields}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def leaving(terminal: Terminal, folder: Path, rank: int) -> Callable[[str], None]:
    """What ends a run that is asked to stop before its first step: at once, since all that it has
    made so far can be made again; a kill would do no more."""

    def leave(why: str) -> None:
        if rank == 0:
            note(folder, "stopped", step=None, why=why)
            terminal.err.write(f"stopped by {why} before the first step; nothing is lost\n")
        terminal.err.flush()
        os._exit(FINISHED)

    return leave
