"""Tokens reach the nodes and nobody else: by a private file, over standard input."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch.environment import FILE, content, read_environment

ROOT = Path(__file__).parents[2]
SECRET = "a=secret with spaces, #1"


def test_what_is_handed_out_is_what_a_node_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, on this machine, in a home folder of its own; by its own umask, whatever
    the user's."""
    environment = os.environ | {"HOME": str(tmp_path), "SOME_TOKEN": SECRET, "EMPTY": ""}
    command = [sys.executable, "-m", "launch.environment", "SOME_TOKEN", "EMPTY"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr
    file = tmp_path / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    monkeypatch.setenv("EMPTY", "is set already")
    read_environment(file)
    assert os.environ["SOME_TOKEN"] == SECRET
    assert os.environ["EMPTY"] == "is set already"
    del os.environ["SOME_TOKEN"]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "environment"
    read_environment(file)  # none: nothing to read
    file.write_text(f"SOME_TOKEN={SECRET}\n")
    file.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600") as refused:
        read_environment(file)
    assert SECRET not in str(refused.value) and "SOME_TOKEN" not in os.environ


def test_a_line_of_another_form_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "environment"
    file.write_text(f"# tokens\n\n{SECRET.replace('=', ' ')}\n")
    file.chmod(0o600)
    with pytest.raises(ValueError, match="line 3") as refused:
        read_environment(file)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "A=B", "two\nlines", ""])
def test_what_cannot_be_handed_out_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        content([name])
