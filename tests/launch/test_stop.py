"""A request to stop is heard: a signal at once, the end of the launcher soon."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.stop import BETWEEN_LOOKS, CLOCK, STOP_SIGNALS, Stopped, StopRequest, age
from tests import forked

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


@pytest.mark.parametrize("how", STOP_SIGNALS)
def test_a_signal_is_a_request_and_afterwards_signals_are_as_before(how: signal.Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so would the request
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, CLOCK)}
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), how)
        assert stop and stop.reason == how.name and not stop.fault
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_reason_is_the_reason() -> None:
    """DeepSpeed's launcher answers Ctrl-C with SIGTERM to all, and schedulers send both; which one
    it was decides whether the run is started again."""
    for first in (signal.SIGINT, signal.SIGUSR1):
        with StopRequest() as stop:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop and stop.reason == first.name


def test_what_a_shell_ignores_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


# The wait for another rank is torch's own: no handler of Python's runs in it.
FIRST_OF_TWO = """
import os, sys
from torch.distributed import TCPStore
from launch.stop import StopRequest

def leave(why):
    print("left by", why, flush=True)
    os._exit(0)

with StopRequest(leave=leave, minutes=float(sys.argv[1])):
    print("waits", flush=True)
    TCPStore("127.0.0.1", 0, world_size=2, is_master=True, wait_for_workers=True)
"""


def test_a_request_is_heard_while_the_process_waits_for_others(tmp_path: Path) -> None:
    for minutes, why in ((0.0, "SIGTERM"), (1e-9, "wall clock")):
        process = forked.start("-c", FIRST_OF_TWO, str(minutes), folder=tmp_path)
        said = ""
        while "waits" not in said and process.poll() is None:
            said += process.stdout.read()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, process.stderr.read()
        assert f"left by {why}" in said + process.stdout.read()


def test_a_signal_to_a_child_is_none_to_the_run() -> None:
    left: list[str] = []
    with StopRequest(leave=left.append):
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.1)
    assert not left


def test_before_there_is_something_to_finish_a_request_leaves() -> None:
    left: list[str] = []
    with StopRequest(leave=left.append) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.begin()
        assert left == ["SIGUSR1"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == ["SIGUSR1"] and stop


def test_a_wait_is_ended_by_a_request_wherever_it_was_made() -> None:
    """Inside the wait, by an error that nothing catches which tries again; before it; and once."""
    with StopRequest() as stop:
        with pytest.raises(Stopped), stop.waiting():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except Exception as error:
                raise AssertionError("caught by what waits") from error
        with pytest.raises(Stopped), stop.waiting():
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGTERM)  # nobody waits: a request like any other
        assert stop


def test_a_wait_that_nobody_ends_ends_by_itself() -> None:
    with StopRequest() as stop:
        with stop.waiting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop


@pytest.mark.parametrize("passed", [False, True], ids=["ahead", "already passed"])
def test_its_own_clock_counts_from_the_start_of_the_process(passed: bool) -> None:
    ahead = 0.0 if passed else 0.2
    minutes = (age() + ahead) / 60 if not passed else 1e-9
    with StopRequest(minutes=minutes) as stop:
        asked_at = time.monotonic()
        while not stop:
            assert time.monotonic() < asked_at + 5
            time.sleep(0.005)
        assert stop.reason == "wall clock"
        assert time.monotonic() - asked_at >= ahead - 0.1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with StopRequest() as never:
        assert not never and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_fault_that_asks_is_told_from_a_request() -> None:
    with StopRequest() as stop:
        stop.ask("step 4 could not be saved")
        assert stop and stop.fault and stop.reason == "step 4 could not be saved"


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


def test_a_command_that_ended_before_its_ranks_looked_is_missed_too() -> None:
    """Killed while they were importing: whoever has the launcher now never ends."""
    launcher = """
import os, subprocess, sys, time
while os.getppid() == int(sys.argv[3]):
    time.sleep(0.01)
subprocess.run([sys.executable, "-c", sys.argv[2]])
"""
    command = """
import os, subprocess, sys
words = ["deepspeed.launcher.launch", sys.argv[2], str(os.getpid())]
subprocess.Popen([sys.executable, "-c", sys.argv[1], *words])
"""
    rank = f"import signal; signal.setitimer(signal.ITIMER_REAL, 20){RANK}"
    done = subprocess.run(
        [sys.executable, "-c", command, launcher, rank], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["False", "the deepspeed command ended"], done.stderr
