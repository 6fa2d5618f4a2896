"""Points share out a machine's devices, and nothing of a session outlives its end."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.supervise import members
from launch.sweep.config import SweepConfig
from launch.sweep.points import Point
from launch.sweep.session import Session, devices, launch_command, places


@pytest.mark.parametrize(
    "at_once, processes, gpus, shared",
    [
        (0, 1, [], [[]]),
        (3, 1, [], [[], [], []]),
        (0, 1, [0, 1, 2], [[0], [1], [2]]),
        (2, 1, [0, 1, 2], [[0], [1]]),
        (0, 2, [2, 3, 4, 5, 6], [[2, 3], [4, 5]]),
        (9, 4, [0, 1, 2, 3], [[0, 1, 2, 3]]),
    ],
)
def test_each_point_that_runs_has_devices_of_its_own(
    at_once: int, processes: int, gpus: list, shared: list
) -> None:
    options = SweepConfig(at_once=at_once, processes=processes)
    assert places(options, gpus, False) == shared


def test_a_point_that_no_devices_are_left_for_is_refused() -> None:
    with pytest.raises(ValueError, match="processes=4: this machine has 2 GPUs"):
        places(SweepConfig(processes=4), [0, 1], False)


def test_the_devices_are_those_that_the_command_may_use(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert devices() == [2, 5]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=GPU-8a"):
        devices()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"  # stands in for the driver's: as it answers on two GPUs
    tool.write_text('#!/bin/sh\necho "GPU 0: H (UUID: a)"\necho "  MIG 1g"\necho "GPU 1: H"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices() == [0, 1]
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert devices() == []


def test_a_command_is_a_launchers_with_a_port_of_its_own() -> None:
    point = Point("seed-1", Path("runs/s/seed-1"), ["seed=1", "name=s/seed-1"], {"seed": 1}, 9)
    one, other = (launch_command(point, gpus, 2, Path("train.py")) for gpus in ([2, 3], []))
    assert one[1:4] == ["--quiet", "--include", "localhost:2,3"]
    assert other[1:4] == ["--quiet", "--num_gpus", "2"]
    assert one[-3:] == other[-3:] == ["train.py", *point.overrides]
    assert one[0].endswith("deepspeed") and one[4] == "--master_port"


def test_a_session_is_asked_once_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """A child counts the requests, in the same session and outliving the process that was
    started."""
    code = """
import os, pathlib, signal, sys, time
folder, heard = pathlib.Path(sys.argv[1]), []
if os.fork():
    signal.pause()  # dies of SIGTERM
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
(folder / "ready").touch()
while not heard:
    time.sleep(0.01)
time.sleep(0.5)
(folder / "heard").write_text(str(len(heard)))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    session = Session(process)
    while not (tmp_path / "ready").exists():
        assert session.poll() is None
        time.sleep(0.01)
    session.end()
    session.end()
    session.leave()
    while (ended := session.poll()) is None:
        time.sleep(0.01)
    assert ended == -signal.SIGTERM and not members(process.pid)
    assert (tmp_path / "heard").read_text() == "1"


def test_a_second_interrupt_kills_what_hears_nothing() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    session = Session(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))
    session.kill()
    began = time.monotonic()
    while session.poll() is None:
        assert time.monotonic() - began < 20
        time.sleep(0.01)
