"""Runs that are asked to stop save and leave, whatever they are at; runs that stand still end."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Runs
from tests.test_run import step_reached

STALLED = str(Path(__file__).with_name("train_stalled.py"))


def rank_of(session: int, rank: int) -> int:
    """The process of a launched run that has that rank."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
        except OSError:  # gone, or not ours
            continue
        ours = int(fields[3]) == session and b"--local_rank" in command
        if ours and f"RANK={rank}".encode() in words and b"deepspeed.launcher" not in command:
            return int(entry.name)
    raise AssertionError(f"no rank {rank} in session {session}")


def launch(runs: Runs, **settings: object) -> subprocess.Popen:
    """A run of two ranks under the launcher, in a session of its own."""
    return subprocess.Popen(
        runs.command(2, **settings),
        cwd=runs.folder,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(holds, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Until `holds()` does; AssertionError with the output where the run ends before."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_signal_saves_and_ends_well(runs, how):
    name = f"stopped-{how.name}"
    settings = dict(name=name, steps=100_000, save_every=0)
    process = runs.interrupted(step_reached(3), how, **settings)
    assert process.returncode == 0
    assert "the same command goes on" in process.stdout.read()
    *_, saved, stopped = runs.events(name)
    assert saved["event"] == "saved" and stopped["event"] == "stopped"
    assert stopped["step"] == saved["step"] and stopped["why"] == how.name
    runs.finished(**settings | dict(steps=saved["step"] + 1))
    assert runs.events(name)[-2]["step"] == saved["step"] + 1


def test_the_end_of_the_deepspeed_command_alone_saves_and_ends_its_ranks(runs):
    name = "orphaned"
    settings = dict(name=name, steps=100_000, save_every=0)
    # What it printed to goes with it, as with a lost connection.
    runs.interrupted(
        step_reached(3), signal.SIGTERM, 2, whole_group=False, **settings
    ).stdout.close()
    deadline = time.monotonic() + 60
    while runs.events(name)[-1]["event"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert runs.events(name)[-1]["why"] == "the deepspeed command ended"
    assert runs.events(name)[-2]["event"] == "saved"


def test_a_rank_that_waits_for_data_leaves_with_the_others(runs):
    """Rank 1 has no batch, rank 0 has one that it gives back; both save the steps before."""
    stalled = replace(runs, script=STALLED)
    name = "stalled"
    settings = dict(name=name, steps=100_000, save_every=0)
    folder = runs.folder / "runs" / name
    process = launch(stalled, **settings)
    wait_for(lambda: step_reached(3)(folder), process)
    time.sleep(1.0)  # rank 1 waits by now
    asked_at = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)  # the command: its ranks may take a little longer
    while runs.events(name)[-1]["event"] != "stopped":
        assert time.monotonic() - asked_at < 30.0, "the launcher would have killed it"
        time.sleep(0.1)
    process.stdout.close()
    saved, stopped = runs.events(name)[-2:]
    assert (saved["event"], saved["step"]) == ("saved", 3)
    assert (stopped["event"], stopped["step"], stopped["why"]) == ("stopped", 3, "SIGTERM")
    runs.finished(2, launched=False, **settings | dict(steps=5, logging__sample_tokens=0))
    assert len(runs.losses(name)) == 5


def test_a_rank_that_stands_still_ends_the_run_and_every_rank_says_where_it_was(runs):
    name = "hung"
    limits = dict(limits__hang=5, data__retry_seconds=1)
    folder = runs.folder / "runs" / name
    process = launch(runs, name=name, steps=100_000, save_every=0, **limits)
    wait_for(lambda: step_reached(3)(folder), process)
    os.kill(rank_of(process.pid, 1), signal.SIGSTOP)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 4, said
    last = runs.events(name)[-1]
    assert last["event"] == "hung" and "limits.hang=5" in last["why"]
    for rank in (0, 1):
        stacks = (folder / "logs" / f"stacks-rank-{rank}.txt").read_text()
        assert "has stood still for" in stacks and "train.py" in stacks, stacks
