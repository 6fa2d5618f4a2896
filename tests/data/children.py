"""Forked processes for tests, and waiting for what they do."""

import os
import time
import traceback
from collections.abc import Callable


def child(act: Callable[[], object]) -> int:
    """The number of a forked process that does something and ends, with 0 if it went well."""
    number = os.fork()
    if number == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return number


def ended_well(number: int) -> bool:
    """Whether a child that is waited for went well."""
    return os.waitpid(number, 0)[1] == 0


def kill(number: int, how: int) -> None:
    """Send a child a signal and wait until it is gone."""
    os.kill(number, how)
    os.waitpid(number, 0)


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until something holds, 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
