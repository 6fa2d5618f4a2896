"""A request to stop is heard: a signal at once, the end of the launcher soon."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.stop import BETWEEN_LOOKS, StopRequest

ROOT = Path(__file__).parents[2]
# The `deepspeed` command starts the launcher, and that one starts the processes of the run.
COMMAND = """
import subprocess, sys, time
launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]])"
process = subprocess.Popen(
    [sys.executable, "-c", launcher, "deepspeed.launcher.launch", sys.argv[1]]
)
time.sleep(60)
"""
RANK = """
import time
from launch.stop import StopRequest
with StopRequest() as stop:
    print(bool(stop), flush=True)
    while not stop:
        time.sleep(0.01)
    print(stop.reason, flush=True)
"""


def test_a_signal_is_a_request_and_afterwards_signals_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_the_deepspeed_command_is_a_request() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, RANK], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "False\n"
    process.kill()
    killed_at = time.monotonic()
    assert process.stdout.readline() == "the deepspeed command ended\n"
    assert time.monotonic() - killed_at < BETWEEN_LOOKS + 5
    process.wait()
    process.stdout.close()
