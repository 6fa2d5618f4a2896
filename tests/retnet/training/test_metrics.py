"""The run's files: every line once, every line valid, and only rank 0 speaks."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from retnet.training.curve import loss_curve, smoothed
from retnet.training.lines import read_lines
from retnet.training.metrics import Metrics
from retnet.training.sinks import LoggingConfig, WandbMode
from tests import forked
from tests.small_disk import fill

OFF = LoggingConfig(wandb=WandbMode.off)


def _open(folder: Path, config: LoggingConfig = OFF, rank: int = 0, **values: Any) -> Metrics:
    return Metrics(
        folder,
        config,
        console=values.pop("console", io.StringIO()),
        total_steps=20,
        run_name="run7",
        resolved_config={"seed": 1},
        rank=rank,
    )


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with _open(tmp_path) as metrics:
        metrics.resume_at(0)
        for step in range(1, 8):
            metrics.log(step, {"loss": 1.0 / step})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-5])  # the process died while it wrote step 7
    with _open(tmp_path) as metrics:
        metrics.resume_at(4)
        for step in range(5, 10):
            metrics.log(step, {"loss": 1.0 / step})
    assert read_lines(file) == [{"step": step, "loss": 1.0 / step} for step in range(1, 10)]


def test_a_torn_line_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    with _open(tmp_path) as metrics:
        metrics.resume_at(1)
        metrics.log(2, {"loss": 2.0})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RuntimeError, match="metrics.jsonl line 2"):
        read_lines(tmp_path / "metrics.jsonl")


def test_a_resumed_run_has_what_was_asked_of_the_model_once(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    with _open(tmp_path) as metrics:
        metrics.resume_at(0)
        for step in (2, 4, 6):
            metrics.detail(step, "samples", prompt="def ", text=f"at {step}")
            metrics.detail(step, "positions", loss=[1.0, float("nan")], grid=[[float("inf")]])
    for _ in range(2):  # a new process, and a return to an older checkpoint within one
        with _open(tmp_path) as metrics:
            metrics.resume_at(4)
            metrics.detail(6, "samples", prompt="def ", text="at 6")
            metrics.resume_at(4)
            metrics.detail(6, "samples", prompt="def ", text="at 6 again")
    lines = read_lines(file)
    assert [line["step"] for line in lines] == [2, 2, 4, 4, 6]
    assert lines[0] == {"step": 2, "kind": "samples", "prompt": "def ", "text": "at 2"}
    assert (lines[1]["loss"], lines[1]["grid"]) == ([1.0, None], [[None]])
    assert lines[-1]["text"] == "at 6 again"


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    with _open(tmp_path) as metrics:
        metrics.resume_at(0)
        metrics.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 5})
        metrics.event("skipped", step=1, reason="overflow")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    assert parsed == [{"step": 1, "loss": None, "grad_norm": None, "tokens": 5}]
    event = read_lines(tmp_path / "events.jsonl")[0]
    assert (event["event"], event["step"], event["reason"]) == ("skipped", 1, "overflow")
    assert event["time"].endswith("+00:00")


def test_events_are_only_ever_added(tmp_path: Path) -> None:
    for step in (0, 4, 2):
        with _open(tmp_path) as metrics:
            metrics.resume_at(step)
            metrics.event("resumed", step=step)
    assert [line["step"] for line in read_lines(tmp_path / "events.jsonl")] == [0, 4, 2]


def test_a_full_disk_loses_no_line_and_is_told_of_once(small_disk: Path) -> None:
    console = io.StringIO()
    with _open(small_disk / "run", console=console) as metrics:
        metrics.resume_at(0)
        metrics.log(1, {"loss": 1.0})
        fill(small_disk / "ballast")
        for step in range(2, 400):  # more than is left of the last page
            metrics.log(step, {"loss": 1.0})
        metrics.event("save_failed", step=399)
        (small_disk / "ballast").unlink()
        metrics.event("saved", step=400)
        metrics.log(400, {"loss": 1.0})
    lines = read_lines(small_disk / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 401))
    events = [line["event"] for line in read_lines(small_disk / "run/events.jsonl")]
    assert events == ["save_failed", "saved"]
    assert console.getvalue().count("takes no lines (No space left on device)") == 1
    assert console.getvalue().count("takes lines again") == 1


def test_a_folder_that_cannot_be_written_is_said_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/run cannot be written .* make room or rights"):
        _open(tmp_path / "file" / "run")


def test_other_ranks_leave_no_trace(tmp_path: Path) -> None:
    console = io.StringIO()
    with _open(tmp_path / "run", rank=1, console=console) as metrics:
        metrics.resume_at(0)
        metrics.log(1, {"loss": 1.0})
        metrics.event("saved")
        metrics.say("saved")
    assert not (tmp_path / "run").exists() and console.getvalue() == ""


def test_a_killed_process_loses_no_line_it_logged(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from retnet.training.metrics import Metrics
from retnet.training.sinks import LoggingConfig, WandbMode
metrics = Metrics(Path({str(tmp_path)!r}), LoggingConfig(wandb=WandbMode.off), console=sys.stdout,
                  total_steps=9, run_name="r", resolved_config={{}}, rank=0)
metrics.resume_at(0)
for step in range(1, 6):
    metrics.log(step, {{"loss": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = forked.run("-c", script, folder=tmp_path, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_the_curve_is_drawn_from_the_lines(tmp_path: Path) -> None:
    assert loss_curve(tmp_path) is None
    with _open(tmp_path) as metrics:
        metrics.resume_at(0)
        for step in range(1, 40):
            metrics.log(step, {"loss": 3.0 / step})
            if step % 10 == 0:
                metrics.log(step, {"val/held_out/loss": 3.1 / step})
    path = loss_curve(tmp_path)
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smoothed([1.0]) == [1.0]


def test_one_huge_value_spoils_the_smoothing_only_around_it() -> None:
    values = [1.0] * 200
    values[50] = 1e30
    smooth = smoothed(values)
    assert smooth[:45] == smooth[56:][:45] == [1.0] * 45 and smooth[50] > 1e28
