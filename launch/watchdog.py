"""Notices that a run stands still: a process that hangs, is stopped, or lives on a machine that
vanished makes every other one's step late, so time alone tells it, without a word over the network.

What is late writes the stacks of all its threads into the run's logs and ends. It repairs nothing:
starting again is the supervisor's.
"""

import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from launch.exits import HUNG

# Seconds that all get to write their stacks, before the first one's end ends them.
_LAST_WORDS = 5.0
# Seconds after which a process whose own threads do not run is ended from outside Python.
_BACKUP = 15.0


class Watchdog:
    """Ends this process with code 4 when `beat` was not called for too long."""

    def __init__(
        self, folder: Path, rank: int, *, limit: float, tell: Callable[[str], None] | None = None
    ) -> None:
        """`folder` is that of the logs, `limit` in seconds, 0: never. `tell` is given a sentence
        before the end."""
        self._file = folder / f"stacks-rank-{rank}.txt"
        self._limit, self._tell, self._rank = limit, tell, rank
        self._neighbors: list[int] = []
        self._at = self._armed_at = time.monotonic()
        self._where = "start-up"
        self._stream: TextIO | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._limit:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._file.open("a")  # an earlier session's last words stay
        return self

    def begin(self, peers: list[tuple[str, int]]) -> None:
        """Watches from here on. `peers` are all processes of the run, as `this_process` names
        them: those of this machine are woken before the end, if somebody stopped them."""
        here, mine = this_process()
        self._neighbors = [pid for host, pid in peers if host == here and pid != mine]
        self._armed_at = 0.0
        self.beat("the first step")
        if self._limit:
            self._thread.start()

    def beat(self, where: str) -> None:
        """All is well; `where` the run is, in words. Costs a microsecond."""
        self._where, self._at = where, time.monotonic()
        if self._stream is not None and self._at - self._armed_at >= 1.0:
            self._armed_at = self._at
            # For a thread that keeps all others of this process from running.
            seconds = self._limit + _BACKUP
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._stream)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._stream is not None:
            faulthandler.cancel_dump_traceback_later()
            self._stream.close()
            with suppress(OSError):
                if self._file.stat().st_size == 0:
                    self._file.unlink()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._limit / 4)):
            late = time.monotonic() - self._at
            if late > self._limit:
                return self._end(late)

    def _end(self, late: float) -> None:
        # First of all, since the disk with the run folder may be what hangs.
        threading.Timer(_LAST_WORDS, os._exit, [HUNG]).start()
        words = (
            f"rank {self._rank} has stood still for {late:.0f} s in {self._where} "
            f"(limits.hang={self._limit:g}): {self._file} says where each of its threads is, "
            "and the files beside it those of the other ranks"
        )
        assert self._stream is not None
        with suppress(OSError, ValueError):
            self._stream.write(f"{words}\n")
            self._stream.flush()
            faulthandler.dump_traceback(self._stream, all_threads=True)
        for pid in self._neighbors:
            with suppress(OSError):
                # A stopped one wakes, finds itself late and writes its own.
                os.kill(pid, signal.SIGCONT)
        if self._tell is not None:
            self._tell(words)


def this_process() -> tuple[str, int]:
    """(machine, process id)"""
    return socket.gethostname(), os.getpid()
