"""A run of train.py that is killed again and again, and that the supervisor starts again and again,
comes out as one that nothing happened to."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, Runs

RANKS = 2
WHOM = ("one rank", "all ranks")
WHOLE = {"steps": 60, "save_every": 2, "evaluate_every": 7, "logging__sample_tokens": 0}
MOMENTS = {"start-up": 6.0, "step": 0.4, "save": 0.02, "end": 0.2}
"""What train.py is about, with seconds of it in which it is killed."""


class Seen:
    """A supervised run of train.py as it is seen from outside: by its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = 0
        "Sessions that had begun when this one was started."

    def begun(self) -> int:
        """Sessions that have loaded what they go on from."""
        file = self._folder / "events.jsonl"
        words = file.read_text() if file.exists() else ""
        return words.count('"event": "started"') + words.count('"event": "resumed"')

    def restarted(self) -> None:
        """What begins from now on is another session."""
        self._before = self.begun()

    def phase(self) -> str:
        """What the session of now is about."""
        if self.begun() == self._before:
            return "start-up"
        if any((self._folder / "checkpoints").glob("step-*.tmp")):
            return "save"
        return "end" if self.step() == WHOLE["steps"] else "step"

    def step(self) -> int:
        """The last one in the metrics, of this session or one before."""
        file = self._folder / "metrics.jsonl"
        steps = re.findall(r'"step": (\d+),', file.read_text() if file.exists() else "")
        return int(steps[-1]) if steps else 0


@pytest.mark.long
def test_a_supervised_run_is_killed_until_it_is_finished(
    runs: Runs, draw: random.Random, record: Callable[..., None]
) -> None:
    """train.py under the launcher and the supervisor; one rank or both are killed eight times.
    Every line of the metrics is then that of the run that nothing happened to."""
    runs.finished(2, launched=False, name="untouched", **WHOLE)
    command = [sys.executable, "-m", "launch.supervise", "--wait", "0.1", "--"]
    command += runs.command(2, name="supervised", **WHOLE)
    environment, said = os.environ | {"PYTHONPATH": str(ROOT)}, runs.folder / "supervised.txt"
    with said.open("w") as output:
        run = subprocess.Popen(
            command, cwd=runs.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    aims = [(aim, whom) for aim in ("start-up", "step", "save") for whom in WHOM]
    aims = [*draw.sample(aims, len(aims)), *(("end", whom) for whom in WHOM)]
    try:
        hit = kill_supervised(run, Seen(runs.folder / "runs" / "supervised"), aims, draw)
        code = run.wait(timeout=300)
    finally:
        run.terminate()
        run.wait(timeout=60)
    fine = code == 0 and runs.metrics("supervised") == runs.metrics("untouched")
    for whom, phase in hit:
        fault = f"SIGKILL of {whom} of train.py, supervised"
        record(fault, fine, said.read_text(), moment=phase)


def kill_supervised(
    run: subprocess.Popen, seen: Seen, aims: list[tuple[str, str]], draw: random.Random
) -> list[tuple[str, str]]:
    """Kills ranks of a supervised run at each aim, in turn; whom, and what was under way."""
    killed, hit = set(), []
    # steps at which it is killed come all over the run, each later than the one before
    steps = iter(sorted(draw.sample(range(4, 49), len(aims))))
    for aim, whom in aims:
        after = next(steps) if aim in ("step", "save") else 0
        deadline = time.monotonic() + 300
        new: list[psutil.Process] = []
        while len(new) < RANKS or seen.phase() != aim or seen.step() < after:
            assert run.poll() is None, f"it has ended before it came to {aim}"
            assert time.monotonic() < deadline, f"it did not come to {aim}"
            if len(new) < RANKS:
                time.sleep(0.05)
                new = [process for process in ranks_of(run.pid) if process.pid not in killed]
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, MOMENTS[aim]))
        for process in new if whom == "all ranks" else [draw.choice(new)]:
            process.kill()
        hit.append((whom, seen.phase()))
        killed |= {process.pid for process in new}
        seen.restarted()
    return hit


def ranks_of(supervisor: int) -> list[psutil.Process]:
    """The ranks that run under a supervisor now: what DeepSpeed's launcher started."""
    found = []
    for process in psutil.Process(supervisor).children(recursive=True):
        try:
            if "deepspeed.launcher.launch" in process.parent().cmdline():
                found.append(process)
        except (psutil.Error, AttributeError):  # it has just gone
            continue
    return found
