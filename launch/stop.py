"""How a running job is asked to stop: signals and its own clock become a flag that is looked at
between steps; where no step can be finished they end the phase that it is in. It saves nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

# SIGHUP: the terminal or the connection that the run was started from is gone. SIGUSR1: a scheduler
# warns of the end of its time.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
CLOCK = signal.SIGALRM
LAUNCHER = "deepspeed.launcher.launch"
# Seconds between two looks at who is alive: reading /proc costs a tenth of a millisecond.
BETWEEN_LOOKS = 1.0


class Stopped(BaseException):
    """Raised inside a wait that a request to stop ends. No Exception: what tries again after
    errors must let it through."""


class StopRequest:
    """Whether somebody asked this process to stop, while the `with` block lasts.

    The first signal is a request, so that the step in hand can be finished and saved; after it a
    Ctrl-C interrupts at once. The death of the `deepspeed` command is a request too: on one machine
    it hands no signal on, and its processes would train on unseen.
    """

    def __init__(self, *, minutes: float = 0.0, leave: Callable[[str], None] | None = None) -> None:
        """`minutes` from the start of the process on it asks itself, 0 never. `leave` is called
        with the reason, and is not to return, while there is nothing to finish: from the beginning
        until `begin`, in a thread of its own."""
        self.reason: str | None = None
        "The signal, or what else asked this process; None where it asked another one."
        self.fault = False
        "Whether what asked is a fault of the machine, so that the run is not to end well."
        self._leave, self._minutes = leave, minutes
        self._waits = False
        self._listening: _Listening | None = None
        self._launched_by = launched_by()
        if self._launched_by is not None and _takes_orphans(self._launched_by):
            self._launched_by = -1  # it ended while this process was importing: nobody's number
        self._look_again = time.monotonic() + BETWEEN_LOOKS
        self._before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, CLOCK)}

    def __enter__(self) -> Self:
        for number in self._before:
            # nohup starts a process with SIGHUP ignored, and that stays as it is
            if self._before[number] is not signal.SIG_IGN:
                signal.signal(number, self._receive)
        if self._leave is not None:
            self._listening = _Listening(set(self._before), self._leave)
        if self._minutes:
            # At once where the time is up already; a timer of zero seconds would be none.
            signal.setitimer(signal.ITIMER_REAL, max(60.0 * self._minutes - age(), 0.001))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self.begin()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if self._launched_by is not None and time.monotonic() >= self._look_again:
            self._look_again = time.monotonic() + BETWEEN_LOOKS
            if launched_by() != self._launched_by:
                self.reason = self.reason or "the deepspeed command ended"
        return self.reason is not None

    def ask(self, why: str) -> None:
        """The process itself asks, for a fault of the machine."""
        self.reason, self.fault = why, True

    def begin(self) -> None:
        """From here on there is something to finish: a request waits until it is looked at."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A wait that has no end of its own, as for data: a request raises Stopped inside it, one
        that came before at once."""
        self._waits = True  # before the look: a signal in between raises
        try:
            if self.reason is not None:
                raise Stopped
            yield
        finally:
            self._waits = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # The first one's: launchers have SIGTERM follow on whatever they were sent.
        self.reason = self.reason or _words(number)
        if self._listening is not None:
            return  # who listens leaves
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._waits:
            self._waits = False  # once: a second one may come while the first is on its way out
            raise Stopped


class _Listening:
    """Leaves at a signal where no handler would run, since the main thread is inside a call of
    another language, as the wait for other ranks: the interpreter writes each signal's number into
    a pipe at once, and a thread reads there."""

    def __init__(self, numbers: set[signal.Signals], leave: Callable[[str], None]) -> None:
        self._numbers, self._leave = numbers, leave
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no longer; a signal that came before is answered still."""
        signal.set_wakeup_fd(-1)
        os.write(self._write, b"\0")  # no signal's number
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _listen(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number in self._numbers:
                self._leave(_words(number))


# A child shares its parent's pipe, and a signal to a worker is none to the run.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _words(number: int) -> str:
    """What asks, in the words of the events."""
    return "wall clock" if number == CLOCK else signal.Signals(number).name


def age() -> float:
    """Seconds since this process was started."""
    # "pid (name) state parent ...": the 22nd field, in clock ticks since the machine's start
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since  # /proc/uptime may be a container's own


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


def _takes_orphans(process: int) -> bool:
    """Whether it is the one that gets processes whose own parent has ended: a user's systemd, or
    the first of all, unless that is a container's own command."""
    try:
        name = Path(f"/proc/{process}/comm").read_text().strip()
        words = Path(f"/proc/{process}/cmdline").read_text()
    except OSError:  # hidden, or just gone: then the next look tells
        return False
    return "deepspeed" not in words and (process == 1 or name == "systemd")
