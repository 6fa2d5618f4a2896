"""A process that stands still, for whatever reason, ends and says where it stood; one that only
takes its time does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.exits import HUNG
from launch.watchdog import Watchdog

ROOT = Path(__file__).parents[2]
# argv: the folder, the rank, what it does after some steps, and the other processes of the run.
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from launch import watchdog
watchdog._LAST_WORDS, watchdog._BACKUP = 0.5, 4.0
folder, rank, then, *others = sys.argv[1:]

def tell(why):
    print(why, flush=True)
    time.sleep(60)  # as where the disk with the run's folder hangs

def stand_still():
    time.sleep(60)

def hold_all_threads():
    ctypes.PyDLL(None).sleep(60)  # a C function that is called without letting go of the lock

with watchdog.Watchdog(Path(folder), int(rank), limit=0.6, tell=tell) as dog:
    print(watchdog.this_process()[1], flush=True)
    host = watchdog.this_process()[0]
    peers = [(host, int(pid)) for pid in others]
    dog.begin([watchdog.this_process(), *peers, ("another machine", 1)])
    for step in range(8):
        time.sleep(0.2)
        dog.beat(f"step {step + 1}")
    print("beats", flush=True)
    {"stands": stand_still, "holds": hold_all_threads, "ends": lambda: None}[then]()
"""


def start(folder: Path, rank: int, then: str, *others: int) -> subprocess.Popen:
    """A process that beats for much longer than its limit, and then does `then`."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(rank), then, *map(str, others)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """The exit code, what was told and what the stacks file holds of four processes, side by side:
    rank 1 is stopped by somebody as it comes to stand still, and rank 0 knows of it."""
    folder = tmp_path_factory.mktemp("logs")
    stopped = start(folder, 1, "stands")
    pid = int(stopped.stdout.readline())
    processes = {
        "stopped": (stopped, 1),
        "stands": (start(folder, 0, "stands", pid), 0),
        "holds": (start(folder, 2, "holds"), 2),
        "ends": (start(folder, 3, "ends"), 3),
    }
    assert stopped.stdout.readline() == "beats\n"
    os.kill(pid, signal.SIGSTOP)
    found = {}
    for name, (process, rank) in processes.items():
        said, _ = process.communicate(timeout=30)
        file = folder / f"stacks-rank-{rank}.txt"
        found[name] = process.returncode, said, file.read_text() if file.exists() else ""
    return found


def test_what_stands_still_ends_and_says_where_it_stood(ends: dict) -> None:
    code, said, stacks = ends["stands"]
    assert code == HUNG and "beats" in said
    assert "rank 0 has stood still for 1 s in step 8 (limits.hang=0.6)" in said
    assert said.splitlines()[-1] in stacks and "in stand_still" in stacks
    assert "Thread 0x" in stacks and "in _watch" in stacks, "all threads, not its own alone"


def test_a_stopped_neighbor_is_woken_to_say_where_it_was(ends: dict) -> None:
    """It could not by itself, and a scheduler would see nothing but its silence."""
    code, said, stacks = ends["stopped"]
    assert code == HUNG and "rank 1 has stood still" in said
    assert "rank 1 has stood still" in stacks and "in stand_still" in stacks


def test_what_lets_no_thread_of_its_own_run_is_ended_from_outside(ends: dict) -> None:
    code, said, stacks = ends["holds"]
    assert code == 1 and "beats" in said
    assert "Timeout" in stacks and "in hold_all_threads" in stacks


def test_what_takes_its_time_and_ends_leaves_nothing(ends: dict) -> None:
    assert ends["ends"][0] == 0 and ends["ends"][2] == ""


def test_earlier_last_words_stay_and_no_limit_is_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "stacks-rank-0.txt"
    file.write_text("an earlier session's\n")
    with Watchdog(tmp_path, 0, limit=5.0) as dog:
        dog.begin([])
    assert file.read_text() == "an earlier session's\n"
    with Watchdog(tmp_path / "none", 1, limit=0.0) as dog:
        dog.begin([])
        time.sleep(0.05)
        dog.beat("step 1")
    assert not (tmp_path / "none").exists()
