"""How a running job is asked to stop: signals become a flag that is looked at between steps."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this process to stop. The first signal is a request, so that the step
    in hand can be finished and saved; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    @property
    def name(self) -> str | None:
        """The signal that asked this process, or None where it asked another one."""
        return None if self.received is None else self.received.name

    def __bool__(self) -> bool:
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
