"""Four points, two at once: one fails, a request comes in the middle, and the same sweep again goes
on where it stood. The points are real runs; only their launcher's start-up is saved."""

import io
import json
import math
import os
import signal
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.ending import how_it_ended
from launch.lock import is_held
from launch.stop import Stopped
from launch.sweep.config import SweepConfig
from launch.sweep.display import Display
from launch.sweep.points import Point, lines_of, state_of
from launch.sweep.record import Record
from launch.sweep.running import last_words, run_points
from launch.sweep.session import LOG, Session
from tests import forked
from tests.conftest import Runs

STEPS = 12


class Sweep:
    """A sweep in the folder of `runs`, started as often as is wanted."""

    def __init__(self, runs: Runs, name: str) -> None:
        self.runs, self.folder = runs, runs.folder / "runs" / name
        self.folder.mkdir(parents=True)
        (output := self.folder / "output").mkdir()
        self._where = {"folder": output, "cwd": runs.folder}
        self.started: list[str] = []
        self.said: list[str] = []

    def point(self, name: str, **overrides: object) -> Point:
        given = {"steps": STEPS, "save_every": 4, "logging__sample_tokens": 0} | overrides
        command = self.runs.command(name=f"{self.folder.name}/{name}", **given)
        return Point(name, self.folder / name, command[2:], {"point": name}, given["steps"])

    def start(self, point: Point, gpus: list[int]) -> Session:
        return self.begin(point, self.runs.script, *point.overrides)

    def begin(self, point: Point, *command: str) -> Session:
        self.started.append(point.name)
        point.folder.mkdir(exist_ok=True)
        process = forked.start(*command, merged=True, **self._where)
        (log := point.folder / LOG).unlink(missing_ok=True)
        log.symlink_to(process.stdout.name)
        return Session(process)

    def run(
        self, points: list[Point], at_once: int = 2, start: Callable | None = None, **options
    ) -> dict[str, str]:
        self.started, self.said, states = [], [], {}
        how = {"start": start or self.start, "places": [[] for _ in range(at_once)]}
        how |= {"record": Record(self.folder), "display": Display(out := io.StringIO())}
        try:
            run_points(points, SweepConfig(**options), states, **how)
        finally:
            self.said = out.getvalue().splitlines()
        return states


@pytest.fixture
def sweep(runs: Runs, request: pytest.FixtureRequest) -> Sweep:
    return Sweep(runs, request.node.name[:30])


def events(point: Point) -> list[str]:
    return [event["event"] for event in lines_of(point.folder / "events.jsonl")]


def test_a_sweep_that_was_stopped_goes_on_and_a_failed_point_ends_nothing(
    sweep: Sweep, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    points = [
        sweep.point("done", steps=2),
        sweep.point("fails", steps=2, data__files=f"'{late}/[a-d]*.py'"),
        sweep.point("half", steps=100_000, save_every=0),
        sweep.point("last", steps=4),
    ]
    done, fails, half, _ = points

    class Watched(Session):
        """Asks this process to stop once the run is on its way."""

        def poll(self) -> int | None:
            if len(lines_of(half.folder / "metrics.jsonl")) >= 5 and "finished" in events(done):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().poll()

    def start(point: Point, gpus: list[int]) -> Session:
        session = sweep.start(point, gpus)
        return Watched(session._process) if point is half else session

    with pytest.raises(Stopped):
        sweep.run(points, start=start)
    assert sweep.started[:3] == ["done", "fails", "half"]
    said = "\n".join(sweep.said)
    assert "done: finished, validation loss" in said and "half: stopped" in said
    assert said.count("asked to stop by SIGTERM") == 1
    assert "fails: refused: " in said and str(late) in said
    assert events(half)[-1] == "stopped" and "saved" in events(half)

    late.symlink_to(sysconfig.get_paths()["stdlib"])
    before, reached = events(done), lines_of(half.folder / "metrics.jsonl")[-1]["step"]
    points[2] = half = sweep.point("half", steps=reached + 4)  # no more than that is waited for
    states = sweep.run(points)
    assert states == dict.fromkeys(["done", "fails", "half", "last"], "finished"), sweep.said
    assert "done" not in sweep.started and events(done) == before
    assert "resumed" in events(half) and events(fails).count("finished") == 1
    assert all(math.isfinite(point.value("finished", "", {})) for point in points)
    steps = [line["step"] for line in lines_of(half.folder / "metrics.jsonl") if "loss" in line]
    assert sorted(set(steps)) == list(range(1, reached + 5)) and len(set(steps)) == len(steps)

    assert sweep.run(points) == states and sweep.started == []


def test_a_point_that_is_killed_starts_again_as_often_as_is_said(sweep: Sweep) -> None:
    point = sweep.point("killed", steps=4)

    class Killed(Session):
        def poll(self) -> int | None:
            if lines_of(point.folder / "metrics.jsonl"):
                self.kill()
            return super().poll()

    def start(point: Point, gpus: list[int]) -> Session:
        session = sweep.start(point, gpus)
        return Killed(session._process) if len(sweep.started) == 1 else session

    assert sweep.run([point], start=start, restarts=1) == {"killed": "finished"}
    assert sweep.started == ["killed"] * 2
    assert "killed: starts again, 1 of 1" in sweep.said


def test_a_point_that_a_killed_sweep_had_just_started_is_waited_for(sweep: Sweep) -> None:
    def start(point: Point, gpus: list[int]) -> Session:
        first = sweep.start(point, gpus)
        while not is_held(point.folder):
            assert first.poll() is None
            time.sleep(0.01)
        return sweep.start(point, gpus)  # which is refused: the folder is in use

    point = sweep.point("twice")
    assert sweep.run([point], start=start, objective="no/such") == {"twice": "finished"}
    assert "twice: still runs from before, and is waited for" in sweep.said
    assert sweep.said[-1] == "twice: finished before, but its metrics.jsonl has no no/such"
    assert events(point).count("started") == 1


def test_a_point_that_ends_without_a_word_has_failed_in_the_table_too(sweep: Sweep) -> None:
    point, code = sweep.point("mute"), "print('no room'); raise SystemExit(1)"
    states = sweep.run([point], start=lambda point, gpus: sweep.begin(point, "-c", code))
    assert states == {"mute": "failed"} and sweep.said[-1].endswith("no room")
    assert state_of(point.folder, point.steps) == "failed"
    assert how_it_ended(point.folder).why.endswith("launcher.log: no room")


def test_nothing_starts_on_devices_that_a_point_from_before_may_have(sweep: Sweep) -> None:
    new, left = sweep.point("new"), sweep.point("left")
    code = "import sys, time; from pathlib import Path; from launch.lock import hold_folder;"
    code += "held = hold_folder(Path(sys.argv[1])); time.sleep(0.5)"
    before = sweep.begin(left, "-c", code, str(left.folder))
    while not is_held(left.folder):
        assert before.poll() is None
        time.sleep(0.01)

    def start(point: Point, gpus: list[int]) -> Session:
        assert not is_held(left.folder), "it is still at work"
        return sweep.begin(point, "-c", "raise SystemExit(1)")

    sweep.run([new, left], start=start)
    assert sweep.started == ["left", "new"]


def test_a_point_that_is_worse_than_the_others_is_ended_and_stays_so(sweep: Sweep) -> None:
    """The others are written: they are at every step far better than a model can be."""
    point = sweep.point("worse", steps=100_000, evaluate_every=2)
    others = [sweep.point(name) for name in ("a", "b", "c")]
    for other in others:
        other.folder.mkdir()
        lines = [{"step": step, "val/held_out/loss": 0.1} for step in range(2, 2000, 2)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (other.folder / "metrics.jsonl").write_text(text)
        (other.folder / "events.jsonl").write_text('{"event": "finished", "step": 12}\n')
    assert set(sweep.run(others).values()) == {"finished"}
    Record(sweep.folder).add_points(others, "")
    states = sweep.run([point], prune_after=2)  # Optuna asks for a few at a time
    assert states["worse"] == "pruned" and events(point)[-1] == "stopped"
    record = Record(sweep.folder)
    assert record.pruned["worse"]["pruned"] >= 2
    value = point.value("pruned", "", record.pruned)
    assert math.isfinite(value) and value == record.pruned["worse"]["objective"]
    assert sweep.run([point], prune_after=2) == states and sweep.started == []


def test_a_point_that_cannot_be_started_ends_nothing(sweep: Sweep) -> None:
    blocked, other = sweep.point("blocked"), sweep.point("other", steps=2)
    blocked.folder.touch()
    assert sweep.run([blocked, other], at_once=1) == {"blocked": "failed", "other": "finished"}
    assert any(line.startswith("blocked: failed: [Errno 17]") for line in sweep.said), sweep.said


def test_the_last_words_of_a_point_are_its_own_and_not_its_launchers(tmp_path: Path) -> None:
    assert last_words(tmp_path, -9) == "code -9, and no word"
    said = "data.files=x: no such file\n[2026-11-22 07:49:08,554] [ERROR] [launch.py:300] exits\n\n"
    (tmp_path / LOG).write_text(said)
    assert last_words(tmp_path, 2).endswith("launcher.log: data.files=x: no such file")
