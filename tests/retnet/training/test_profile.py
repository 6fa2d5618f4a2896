"""A trace of single steps on demand: by the config, or by a signal."""

import gzip
import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.training.lines import read_lines
from retnet.training.metrics import Metrics
from retnet.training.profile import ProfileConfig, Profiler
from retnet.training.sinks import LoggingConfig, WandbMode
from tests.small_disk import fill, small_disk

OFF = LoggingConfig(wandb=WandbMode.off)


@contextmanager
def _profiler(
    folder: Path, config: ProfileConfig, rank: int = 0, console: io.StringIO | None = None
) -> Iterator[Profiler]:
    how: dict[str, Any] = {"console": console or io.StringIO(), "total_steps": 9, "run_name": "r"}
    before = signal.getsignal(signal.SIGUSR2)
    try:
        with (
            Metrics(folder, OFF, **how, resolved_config={}, rank=rank) as metrics,
            Profiler(folder, config, torch.device("cpu"), rank, metrics) as profiler,
        ):
            yield profiler
    finally:
        signal.signal(signal.SIGUSR2, before)


def _step(profiler: Profiler, step: int) -> None:
    """One that multiplies matrices of which one side tells the step."""
    profiler.look(step)
    torch.ones(2, step + 1) @ torch.ones(step + 1, 3)


def _steps_in(file: Path) -> list[int]:
    """Those whose products a trace holds."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    products = [event["args"] for event in events if event.get("name") == "aten::mm"]
    return [args["Input Dims"][0][1] for args in products]


def test_the_steps_that_the_config_names_are_traced(tmp_path: Path) -> None:
    with _profiler(tmp_path, ProfileConfig(at=[2, 4])) as profiler:
        for step in range(6):
            _step(profiler, step)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "step-00000002-rank-0.json.gz"
    assert _steps_in(file) == [3, 4]  # the products of the third and fourth step
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["event"], event["step"], event["path"]) == ("profiled", 2, str(file))


def test_a_signal_asks_one_rank_for_the_next_steps_as_often_as_it_comes(tmp_path: Path) -> None:
    with _profiler(tmp_path, ProfileConfig(steps=1), rank=3) as profiler:
        pid = tmp_path / "logs" / "rank-3.pid"
        for step in range(6):
            if step in (1, 4):
                os.kill(int(pid.read_text()), signal.SIGUSR2)
            _step(profiler, step)
    found = {file.name: _steps_in(file) for file in (tmp_path / "profile").iterdir()}
    names = [f"step-0000000{step}-rank-3.json.gz" for step in (1, 4)]
    assert found == {names[0]: [2], names[1]: [5]}
    assert not pid.exists()


def test_a_trace_that_the_runs_end_cuts_short_is_written_and_the_signal_is_harmless(
    tmp_path: Path,
) -> None:
    with _profiler(tmp_path, ProfileConfig(at=[1, 9])) as profiler:
        for step in range(3):
            _step(profiler, step)
        profiler.close()
        os.kill(os.getpid(), signal.SIGUSR2)
    (file,) = (tmp_path / "profile").iterdir()
    assert _steps_in(file) == [2, 3]


def test_a_run_that_comes_by_later_traces_what_is_left(tmp_path: Path) -> None:
    console = io.StringIO()
    with _profiler(tmp_path, ProfileConfig(at=[2, 4]), console=console) as profiler:
        for step in (3, 4, 5):
            _step(profiler, step)
    assert console.getvalue().startswith("traced step 4: ")
    (file,) = (tmp_path / "profile").iterdir()
    assert (file.name[:13], _steps_in(file)) == ("step-00000003", [4])


def test_a_trace_ends_where_the_run_goes_back_to_older_weights(tmp_path: Path) -> None:
    """Else it would grow, in the host's memory, until the run is there again."""
    with _profiler(tmp_path, ProfileConfig(steps=3)) as profiler:
        os.kill(os.getpid(), signal.SIGUSR2)
        for step in (5, 6, 2, 3, 4, 5):
            _step(profiler, step)
    (file,) = (tmp_path / "profile").iterdir()
    assert (file.name[:13], _steps_in(file)) == ("step-00000005", [6, 7])


def test_a_place_that_takes_no_trace_costs_the_trace_alone(tmp_path: Path) -> None:
    (tmp_path / "profile").touch()
    with _profiler(tmp_path, ProfileConfig(at=[0, 1])) as profiler:
        for step in range(3):
            _step(profiler, step)
    assert read_lines(tmp_path / "events.jsonl") == []


def test_a_run_begins_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "run", 1) as folder:
        for file in ("metrics", "events", "evaluations"):
            (folder / f"{file}.jsonl").touch()
        (folder / "logs").mkdir()
        fill(folder / "in the way")
        with _profiler(folder, ProfileConfig()) as profiler:
            assert not profiler.look(0)


@pytest.mark.parametrize("at", [[5], [5, 5], [-1, 3], [7, 2], [1, 2, 3]])
def test_impossible_steps_are_refused_with_an_example(at: list[int]) -> None:
    with pytest.raises(ValueError, match=r"profile\.at=.*profile\.at=\[100,105\]"):
        ProfileConfig(at=at)
