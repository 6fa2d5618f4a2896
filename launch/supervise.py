"""How a running job is asked to stop: signals become a flag that is looked at between steps."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

# SIGHUP: the terminal or the connection that the run was started from is gone.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHER = "deepspeed.launcher.launch"
# Seconds between two looks at who is alive: reading /proc costs a tenth of a millisecond.
BETWEEN_LOOKS = 1.0


class StopRequest:
    """Whether somebody asked this process to stop, while the `with` block lasts.

    The first signal is a request, so that the step in hand can be finished and saved; after it a
    Ctrl-C interrupts at once. The death of the `deepspeed` command is a request too: on one machine
    it hands no signal on, and its processes would train on unseen.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        "The signal, or what else asked this process; None where it asked another one."
        self._launched_by = launched_by()
        self._look_again = time.monotonic() + BETWEEN_LOOKS
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            # nohup starts a process with SIGHUP ignored, and that stays as it is
            if self._before[number] is not signal.SIG_IGN:
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if self._launched_by is not None and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + BETWEEN_LOOKS
            if launched_by() != self._launched_by:
                self.reason = self.reason or "the deepspeed command ended"
        return self.reason is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)


def launched_by() -> int | None:
    """The process that started DeepSpeed's launcher, which started this one; None without it."""
    parent = Path(f"/proc/{os.getppid()}")
    try:
        if LAUNCHER not in (parent / "cmdline").read_text():
            return None
        # "pid (name) state parent ...", where the name may hold spaces and parentheses
        return int((parent / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # the parent is gone
        return None
