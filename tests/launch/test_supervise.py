"""The supervisor starts a run again for as long as that helps, and never longer.

The runs are a script that does what a plan says: start after start, of real processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.supervise import end_session, members

ROOT = Path(__file__).parents[2]
RUN = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
plan = json.loads((folder / "plan.json").read_text())
starts = len(list(folder.glob("start-*")))
(folder / f"start-{starts}").touch()
act = plan[min(starts, len(plan) - 1)]
def write(event):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\\n")
write({"event": "started", "step": 0, "of": 9})
if act.get("checkpoint"):
    made = folder / "checkpoints" / f"step-{starts + 1:08}"
    made.mkdir(parents=True)
    (made / "manifest.json").touch()
if act.get("waits"):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    (folder / "waits").touch()
    while not heard:
        time.sleep(0.01)
    time.sleep(0.5)  # it saves; a second signal would be heard, too
    write({"event": "stopped", "step": 4, "why": "SIGTERM", "signals": len(heard)})
if "event" in act:
    write(act["event"])
if act["code"] < 0:
    os.kill(os.getpid(), -act["code"])
sys.exit(act["code"])
"""


def start(folder: Path, plan: list[dict], *options: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "run.py").write_text(RUN)
    command = [sys.executable, "-m", "launch.supervise", "--wait", "0.02", *options]
    command += ["--folder", str(folder), "--", sys.executable, str(folder / "run.py"), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def supervised(folder: Path, plan: list[dict], *options: str) -> tuple[int, int, str]:
    """The exit code, how often the run was started, and what the supervisor said."""
    process = start(folder, plan, *options)
    _, said = process.communicate(timeout=60)
    return process.returncode, len(list(folder.glob("start-*"))), said


def test_faults_are_followed_by_another_start_and_the_end_by_none(tmp_path: Path) -> None:
    finished = {"code": 0, "event": {"event": "finished", "step": 9}}
    cable = {"code": 1, "event": {"event": "failed", "code": 1, "why": "a cable"}}
    # saved and left, as where DeepSpeed's command is killed or a machine shuts down
    left = [
        {"code": code, "event": {"event": "stopped", "step": 3, "why": why}}
        for code, why in ((-9, "the deepspeed command ended"), (0, "SIGTERM"))
    ]
    plan = [cable, {"code": -9}, {"code": 4}, *left, finished]
    code, starts, said = supervised(tmp_path, plan)
    assert (code, starts) == (0, 6), said
    assert "a cable; restart 1 of 10" in said and "killed by SIGKILL; restart 2" in said


@pytest.mark.parametrize(
    "act, code",
    [
        ({"code": 2}, 2),
        ({"code": 3}, 3),
        # through pdsh every code may be another one; what the run wrote is the truth
        ({"code": 1, "event": {"event": "diverged", "step": 3, "why": "nan"}}, 3),
        ({"code": 1, "event": {"event": "stopped", "step": 3, "why": "SIGINT"}}, 0),
        ({"code": 1, "event": {"event": "stopped", "step": 3, "why": "wall clock"}}, 0),
    ],
)
def test_what_another_start_would_not_mend_ends_it(act: dict, code: int, tmp_path: Path) -> None:
    assert supervised(tmp_path, [act])[:2] == (code, 1)


def test_only_failures_without_progress_are_counted(tmp_path: Path) -> None:
    fails, gets_on = {"code": 1}, {"code": 1, "checkpoint": True}
    code, starts, said = supervised(tmp_path / "fails", [fails], "--restarts", "2")
    assert (code, starts) == (1, 3) and "gives up after 3 failures" in said
    plan = [gets_on, fails] * 3 + [{"code": 0}]
    assert supervised(tmp_path / "gets on", plan, "--restarts", "2")[:2] == (0, 7)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_handed_on_once_and_waited_for(how: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, [{"code": 0, "waits": True}])
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    time.sleep(0.2)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and len(list(tmp_path.glob("start-*"))) == 1, said
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stopped" and last["signals"] == 1


def test_what_outlives_its_command_is_ended(tmp_path: Path) -> None:
    """A process that its parent left behind, and that hears no signal, is in the same session."""
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.fork(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while len(members(process.pid)) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(members(process.pid)) == 1
    end_session(process.pid, patience=0.2)
    assert members(process.pid) == [] and os.getpid() in members(os.getsid(0))


def test_a_signal_before_a_restart_is_the_end(tmp_path: Path) -> None:
    process = start(tmp_path, [{"code": 1}], "--wait", "60")
    assert "restart 1 of 10" in process.stderr.readline()
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "SIGTERM came before the restart" in said
    assert len(list(tmp_path.glob("start-*"))) == 1


@pytest.mark.parametrize(
    ("words", "needed"),
    [(["python", "train.py"], "name=NAME"), (["deepspeeed", "name=a"], "no command deepspeeed")],
)
def test_a_command_that_cannot_be_looked_after_is_refused(words: list[str], needed: str) -> None:
    command = [sys.executable, "-m", "launch.supervise", "--", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and needed in done.stderr and "Traceback" not in done.stderr


def test_a_command_that_is_gone_for_a_while_is_tried_again(tmp_path: Path) -> None:
    """As on a shared disk: the run's file takes itself away, and nobody brings it back."""
    file = tmp_path / "run"
    file.write_text('#!/bin/sh\nrm "$0"\nexit 1\n')
    file.chmod(0o755)
    command = [sys.executable, "-m", "launch.supervise", "--wait", "0.02", "--restarts", "2"]
    command += ["--folder", str(tmp_path), "--", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"gives up after 3 failures without a new checkpoint: {file} cannot" in done.stderr
