"""Stops and hangs of runs under DeepSpeed's launcher, which has its own ways with signals and
codes; what else there is to stops is in test_stops.py."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from tests.conftest import ROOT, Runs
from tests.faults.test_stops import RUN, WITHIN, Record, events
from tests.test_run import step_reached
from tests.test_stops import STALLED

pytestmark = pytest.mark.long


@pytest.fixture
def launched(runs: Runs) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts runs of two ranks under DeepSpeed's launcher, each in a session of its own."""
    started = []

    def launch(script: str | None = None, **settings: object) -> subprocess.Popen:
        command = replace(runs, script=script or runs.script).command(2, **settings)
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        # a script of tests/ would take the folders beside it for the packages of their names
        given["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(command, cwd=runs.folder, start_new_session=True, text=True, **given)
        )
        return started[-1]

    yield launch
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until `holds()` does; AssertionError with the output where the run ends before."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("script, moment", [(None, "a step"), (STALLED, "a data stall")])
def test_it_is_so_under_the_launcher(
    runs: Runs, launched: Callable, record: Record, how: signal.Signals, script: str, moment: str
) -> None:
    """The signal goes to all of the session: the command, the launcher and the ranks."""
    name = f"launched-{how.name}-{'stalled' if script else 'steps'}"
    folder = runs.folder / "runs" / name
    process = launched(script, **RUN | {"name": name, "steps": 100_000, "save_every": 0})
    wait_for(lambda: step_reached(3)(folder), process)
    time.sleep(0.5)
    asked_at = time.monotonic()
    os.killpg(process.pid, how)
    while (last := events(folder)[-1])["event"] != "stopped":
        if time.monotonic() > asked_at + WITHIN:
            break
        time.sleep(0.05)
    good = last["event"] == "stopped" and last["why"] == how.name
    good &= (folder / f"checkpoints/step-{last.get('step', 0):08d}/manifest.json").exists()
    record(f"{how.name}, launched", good, f"{last}", moment)


def test_a_launched_run_that_stands_still_ends_with_code_4(
    runs: Runs, launched: Callable, record: Record
) -> None:
    name = "launched-hung"
    limits = {"limits.hang": 5, "data.retry_seconds": 1, "save_every": 0}
    process = launched(**RUN | limits | {"name": name, "steps": 100_000})
    wait_for(lambda: step_reached(3)(runs.folder / "runs" / name), process)
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(word.startswith("--local_rank") for word in child.cmdline())
        and "deepspeed.launcher.launch" not in child.cmdline()
    ]
    assert len(ranks) >= 2, ranks
    victim = next(child for child in ranks if child.environ()["RANK"] == "1")
    victim.send_signal(signal.SIGSTOP)
    said, _ = process.communicate(timeout=60)
    last = runs.events(name)[-1]
    record("SIGSTOP, launched", process.returncode == 4 and last["event"] == "hung", said)
