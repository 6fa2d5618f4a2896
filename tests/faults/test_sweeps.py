"""Sweeps under `deepspeed` whose processes are all killed in the middle: the same command ends them
as the sweep that nothing happened to."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from launch.supervise import members
from launch.sweep.points import lines_of
from tests.conftest import ROOT, TRAIN, Runs

RATES = ("1e-3", "2e-3", "3e-3", "4e-3")


def start(runs: Runs, *words: str, **settings: object) -> subprocess.Popen[str]:
    """`python train.py -m`, in a session of its own."""
    arguments = runs.command(logging__sample_tokens=0, **settings)[2:]
    swept = {word.split("=")[0] for word in words} | {"optimizer.learning_rate"}
    kept = [word for word in arguments if word.split("=")[0] not in swept]
    return subprocess.Popen(
        [sys.executable, TRAIN, "-m", *kept, *words],
        cwd=runs.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(sweep: subprocess.Popen[str]) -> str:
    """What it said, once it has ended well."""
    said, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, said
    return said


def steps_done(folder: Path) -> int:
    """Of all points of a sweep."""
    files = folder.glob("*/metrics.jsonl")
    return sum(len([line for line in lines_of(file) if "loss" in line]) for file in files)


def kill_all(sweep: subprocess.Popen[str]) -> None:
    """The sweep's process and everything that it started, points first stopped from noticing."""
    below = psutil.Process(sweep.pid).children(recursive=True)
    sessions = {os.getsid(process.pid) for process in below}
    sweep.kill()
    sweep.wait()
    for session in sessions:
        for process in members(session):
            os.kill(process, signal.SIGKILL)


def wait_for(sweep: subprocess.Popen[str], folder: Path, steps: int, delay: float) -> None:
    deadline = time.monotonic() + 600
    while steps_done(folder) < steps:
        assert sweep.poll() is None and time.monotonic() < deadline, sweep.communicate()[0]
        time.sleep(0.02)
    time.sleep(delay)


def results(runs: Runs, name: str) -> dict[str, list[dict]]:
    """By point, the metrics that do not depend on the clock."""
    points = {line["point"] for line in lines_of(runs.folder / "runs" / name / "points.jsonl")}
    return {point: runs.metrics(f"{name}/{point}") for point in sorted(points)}


@pytest.mark.long
def test_four_points_killed_in_the_middle_end_as_if_nothing_had_happened(
    runs: Runs, draw: random.Random, record: Callable[..., None]
) -> None:
    """All processes are killed, then the next sweep is asked to stop; the points that are finished
    by then are left as they are."""
    settings = {"steps": 40, "save_every": 5}
    words = [f"optimizer.learning_rate={','.join(RATES)}", "hydra.launcher.at_once=2"]
    folder = runs.folder / "runs" / "swept-killed"
    sweep = start(runs, *words, name="swept-killed", **settings)
    wait_for(sweep, folder, 12, draw.uniform(0.0, 0.5))
    kill_all(sweep)
    sweep = start(runs, *words, name="swept-killed", **settings)
    wait_for(sweep, folder, 86, draw.uniform(0.0, 0.5))
    sweep.send_signal(signal.SIGTERM)
    assert "of 4 points are done; the same command goes on" in ended(sweep)
    before = {file: file.read_text() for file in folder.glob("*/events.jsonl")}
    said = ended(start(runs, *words, name="swept-killed", **settings))
    assert said.count("40 of 40") == 4 and "again: stopped before" in said, said
    for file, text in before.items():
        if '"finished"' in text:
            assert file.read_text() == text, f"{file} was finished, and was started again"
    ended(start(runs, *words, name="swept-untouched", **settings))
    found, expected = results(runs, "swept-killed"), results(runs, "swept-untouched")
    assert len(found) == len(RATES)
    for point, lines in expected.items():
        same = found[point] == lines
        record("SIGKILL of a sweep and all of its points", same, f"{point}: {found[point]}")


@pytest.mark.long
def test_an_optuna_sweep_killed_in_the_middle_asks_for_the_same_points_again(
    runs: Runs, draw: random.Random
) -> None:
    """Six trials; those that were finished answer at once."""
    settings = {"steps": 4, "save_every": 2}
    words = ["sweep=optuna_learning_rate", "hydra.sweeper.n_trials=6"]
    words += ["hydra.sweeper.sampler.n_startup_trials=2"]
    folder = runs.folder / "runs" / "swept-optuna"
    sweep = start(runs, *words, name="swept-optuna", **settings)
    wait_for(sweep, folder, 13, draw.uniform(0.0, 0.5))
    kill_all(sweep)
    said = ended(start(runs, *words, name="swept-optuna", **settings))
    assert "finished before" in said
    ended(start(runs, *words, name="swept-whole", **settings))
    found, expected = results(runs, "swept-optuna"), results(runs, "swept-whole")
    assert len(expected) == 6 and found == expected
    best = [
        yaml.safe_load((runs.folder / "runs" / name / "optimization_results.yaml").read_text())
        for name in ("swept-optuna", "swept-whole")
    ]
    assert best[0] == best[1] and best[0]["name"] == "optuna"
