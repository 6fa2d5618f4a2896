"""A folder is one run's at a time, and free again when its process is gone, however it went."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.lock import hold_folder, is_held, mark_of

HOLD = """
import sys
from pathlib import Path
from launch.lock import hold_folder, mark_of
lock = hold_folder(Path(sys.argv[1]))
mark_of(Path(sys.argv[1]))  # as a run does when its ranks look whether they see one folder
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_is_refused_and_a_killed_holder_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_held(folder) and mark_of(folder) == ""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    first = mark_of(folder)
    assert is_held(folder) and first
    with pytest.raises(ValueError, match="still at work"):
        hold_folder(folder)
    assert is_held(folder), "asking took the lock away"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert not is_held(folder)
    with hold_folder(folder):
        assert mark_of(folder) not in ("", first), "two sessions with one mark"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        hold_folder(tmp_path / "file" / "run")


ASK = """
import sys
from pathlib import Path
from launch.lock import is_held
print("asks", flush=True)
while True:
    is_held(Path(sys.argv[1]))
"""


def test_who_asks_never_keeps_a_run_from_its_folder(tmp_path: Path) -> None:
    """A table is printed while points begin."""
    with hold_folder(tmp_path):
        pass
    asks = subprocess.Popen(
        [sys.executable, "-c", ASK, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert asks.stdout.readline() == "asks\n"
        for _ in range(300):
            with hold_folder(tmp_path):
                assert asks.poll() is None
    finally:
        asks.kill()
        asks.communicate()
    assert not is_held(empty := tmp_path / "another") and not empty.exists()
