"""Every way to end has its code, its sentence on the terminal, and its line in the events."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from launch import exits
from launch.ending import how_it_ended
from launch.terminal import Terminal

ROOT = Path(__file__).parents[2]


class Spoilt(RuntimeError):
    """As where a training diverges."""


class Cable(RuntimeError):
    """A fault of the machine whose sentence says all."""


ENDS = [
    (ValueError("steps=-1: needed at least 0"), exits.USER_ERROR),
    (Spoilt("the loss is nan"), exits.DIVERGED),
    (Cable("the store does not answer"), exits.MACHINE_FAULT),
    (KeyError("nobody foresaw this"), exits.MACHINE_FAULT),
]


def ended(error: Exception, folder: Path, rank: int) -> tuple[int, str]:
    """The exit code and what stands on the terminal where a run's rank raises this."""
    terminal = Terminal(io.StringIO(), io.StringIO())
    with (
        pytest.raises(SystemExit) as end,
        exits.ending(terminal, rank, diverged=(Spoilt,), plain=(Cable,)),
        exits.noting(folder, rank, diverged=(Spoilt,)),
    ):
        raise error
    return int(str(end.value.code)), terminal.err.getvalue()


@pytest.mark.parametrize(("error", "code"), ENDS, ids=lambda each: type(each).__name__)
def test_an_error_ends_a_run_with_its_code_and_a_sentence(
    error: Exception, code: int, tmp_path: Path
) -> None:
    """A traceback comes with what nobody foresaw alone. What all ranks have in common, rank 0 says;
    what may be one machine's, every rank: so what one meets before it has met the others."""
    assert exits.code_of(error, (Spoilt,)) == code
    found, said = ended(error, tmp_path, 0)
    assert found == code and str(error) in said
    assert ("Traceback" in said) == isinstance(error, KeyError)
    found, said = ended(error, tmp_path, 1)
    assert found == code and str(error) in said and "rank 1" in said
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found, said = ended(error, tmp_path, 1)
    dist.destroy_process_group()
    assert found == code and (str(error) in said) == (code == exits.MACHINE_FAULT)
    last = how_it_ended(tmp_path)
    if code == exits.DIVERGED:  # whoever saw it wrote it down, with its step
        assert last is None
    else:
        assert last is not None and last.code == code and str(error) in last.why
        assert code != 2 or last.why == str(error), "the sentence alone"
        assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1, "rank 0 alone writes"


def test_a_run_that_ends_well_is_left_alone(tmp_path: Path) -> None:
    terminal = Terminal(io.StringIO(), io.StringIO())
    with (
        exits.ending(terminal, 0, diverged=(Spoilt,), plain=()),
        exits.noting(tmp_path, 0, diverged=(Spoilt,)),
    ):
        pass
    assert terminal.err.getvalue() == "" and list(tmp_path.iterdir()) == []


def test_an_event_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    assert ended(ValueError("no"), tmp_path / "gone", 0) == (exits.USER_ERROR, "no\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_has_not_begun_leaves_at_once_and_well(rank: int, tmp_path: Path) -> None:
    """Whatever it is in the middle of: nothing is run on the way out."""
    program = f"""
import sys
from pathlib import Path
from launch import exits
from launch.terminal import Terminal
leave = exits.leaving(Terminal(sys.stdout, sys.stderr), Path(sys.argv[1]), {rank})
try:
    leave("SIGUSR1")
finally:
    print("compiled to the end")
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (exits.FINISHED, "")
    assert ("stopped by SIGUSR1 before the first step" in done.stderr) == (rank == 0)
    if rank == 0:
        event = json.loads((tmp_path / "events.jsonl").read_text())
        assert (event["event"], event["step"], event["why"]) == ("stopped", None, "SIGUSR1")
    else:
        assert not (tmp_path / "events.jsonl").exists()
