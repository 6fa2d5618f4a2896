"""SIGKILL at any moment, of one rank or of all: what was saved is there, and the run that goes on
is the run that nothing happened to, bit by bit."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from tests import forked
from tests.conftest import ROOT, Runs
from tests.retnet.training import processes

STEPS, RANKS = 8, 2
# Seconds that ranks have to notice that one is gone; DeepSpeed's launcher looks once a second.
NOTICED = 2.0


class Whole(NamedTuple):
    """A run that nothing happened to."""

    lines: dict[int, dict[str, Any]]
    "By step."
    results: list[Any]
    "By rank."
    seconds: float
    "From its start to its end."


def begin(folder: Path) -> list[forked.Forked]:
    arguments = {"steps": STEPS, "save_every": 2}
    return processes.start("trained", RANKS, folder, module="workers_kills", **arguments)


def told(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 told; a kill may cut the last line."""
    lines = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def results(folder: Path) -> list[Any]:
    return [torch.load(folder / f"trained-{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    for process in begin(folder):
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    seconds = time.monotonic() - began
    lines = {line["step"]: line for line in told(folder) if "step" in line}
    assert sorted(lines) == list(range(1, STEPS + 1))
    return Whole(lines, results(folder), seconds)


def phase_of(folder: Path, rank: int) -> str:
    """What a rank is about, in a session before which `phase-*` were removed."""
    file = folder / f"phase-{rank}"
    return (file.read_text().strip() if file.exists() else "") or "start-up"


def await_moment(
    ranks: list[forked.Forked], draw: random.Random, folder: Path, whole: Whole
) -> None:
    """Returns at a moment to kill, or when all processes have ended: at any time of the session,
    or soon after something began that takes a small part of it."""
    aim = draw.choice(["start-up", "load", "save", "step + write", "last save"])
    delay = draw.uniform(0.0, whole.seconds if aim == "start-up" else 0.3)
    while phase_of(folder, 0) != aim and any(process.poll() is None for process in ranks):
        time.sleep(0.001)
    until = time.monotonic() + delay
    while time.monotonic() < until and any(process.poll() is None for process in ranks):
        time.sleep(0.001)


def killed(ranks: list[forked.Forked], draw: random.Random, folder: Path) -> str:
    """Kills a rank, or all, and returns what was done, by what was under way."""
    whom = draw.choice([0, 1, None])
    chosen = ranks if whom is None else [ranks[whom]]
    for process in chosen:
        process.kill()
    phase = phase_of(folder, whom or 0)
    deadline = time.monotonic() + NOTICED
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(0.01)
    for process in ranks:  # as a launcher does
        process.kill()
        process.wait(timeout=30)
    return f"SIGKILL of {'all ranks' if whom is None else 'one rank'}: {phase}"


def verdict(before: list[dict], after: list[dict], whole: Whole) -> str:
    """What is wrong with a session after a kill; "" where nothing is. `before` is all that was
    told until the kill, `after` what the next session told."""
    saved = max((line["saved"] for line in before if "saved" in line), default=0)
    began = next((line for line in after if "began" in line), None)
    if began is None:
        return ""  # killed before it had loaded; the next one judges
    if began["began"] < saved:
        return f"step {saved} was saved, and it began at {began}"
    wrong = [line for line in after if "step" in line and line != whole.lines[line["step"]]]
    return f"other than the run without kills: {wrong[:2]}" if wrong else ""


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def kill_often(
    times: int, draw: random.Random, record: Callable[..., None], whole: Whole, folder: Path
) -> None:
    """Kills sessions of runs, each of which goes on where the one before was killed, until that
    often; a run that came to its end is compared, and another begins."""
    done, number, pending, judged = 0, 0, [], 0
    while True:
        run = folder / f"run-{number}"
        for file in run.glob("phase-*"):
            file.unlink()
        ranks = begin(run)
        if done < times:
            await_moment(ranks, draw, run, whole)
        else:
            for process in ranks:
                process.communicate(timeout=120)
        finished = all(process.poll() == 0 for process in ranks)
        broken = not finished and any(process.poll() for process in ranks)
        fault = "" if finished or broken else killed(ranks, draw, run)
        lines = told(run)
        why = verdict(lines[:judged], lines[judged:], whole)
        if broken:
            why = "".join(process.communicate()[0][-2000:] for process in ranks)
        if finished and not equal(results(run), whole.results):
            why = "other weights or moments at the end"
        if why or finished or any("began" in line for line in lines[judged:]):
            for kind in pending:
                record(kind, not why, why)
            pending = []
        assert not broken, why
        judged = len(lines)
        if fault:
            done += 1
            pending.append(fault)
        elif done == times:
            return
        else:
            number, judged = number + 1, 0


def test_a_few_kills_lose_nothing(draw, record, whole, tmp_path) -> None:
    kill_often(2, draw, record, whole, tmp_path)


@pytest.mark.long
def test_fifty_kills_lose_nothing(draw, record, whole, tmp_path) -> None:
    kill_often(50, draw, record, whole, tmp_path)


@pytest.mark.long
def test_a_supervised_run_is_killed_until_it_is_finished(
    runs: Runs, draw: random.Random, record: Callable[..., None]
) -> None:
    """train.py under the launcher and the supervisor; a rank is killed five times, at steps and
    then moments after them that the seed draws. Every line of the metrics is then that of the run
    that nothing happened to."""
    settings = {"steps": 24, "save_every": 2, "evaluate_every": 7, "logging__sample_tokens": 0}
    runs.finished(2, launched=False, name="untouched", **settings)
    command = [sys.executable, "-m", "launch.supervise", "--wait", "0.1", "--"]
    command += runs.command(2, name="supervised", **settings)
    run = subprocess.Popen(
        command,
        cwd=runs.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = runs.folder / "runs" / "supervised" / "metrics.jsonl"
    kills = 0
    for step in sorted(draw.sample(range(1, 22), 5)):
        deadline = time.monotonic() + 120
        while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0]
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        for victim in ranks_of(run.pid)[-1:]:
            victim.kill()
            kills += 1
    said, _ = run.communicate(timeout=300)
    fine = run.returncode == 0 and runs.metrics("supervised") == runs.metrics("untouched")
    for _ in range(kills):
        record("SIGKILL of a rank of train.py, supervised", fine, said)


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
