"""Every way to ask a run to stop, at every moment: it saves and leaves within the 30 seconds that
DeepSpeed's launcher gives it, before its first step at once; and the same command goes on as if
nobody had asked."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Runs
from tests.test_run import step_reached
from tests.test_stops import STALLED

pytestmark = pytest.mark.long
# What a run calls it, and the signal; a run's own clock is its timer's.
ASKED = {
    "SIGTERM": signal.SIGTERM,
    "SIGINT": signal.SIGINT,
    "SIGUSR1": signal.SIGUSR1,
    "wall clock": signal.SIGALRM,
}
WITHIN = 30.0
# Held-out text for seconds of evaluation; limits.hang: a run that did not hear ends as lost.
RUN = {
    "steps": 40,
    "schedule": "constant",
    "model.dropout": 0.1,
    "engine": "zero2",
    "data.validation_fraction": 0.3,
    "data.validation_bytes": 600_000,
    "logging.sample_tokens": 0,
}
Record = Callable[..., None]
Comes = Callable[[Path, int], bool]
"""Whether a moment has come, of a run's folder and the step at which its session began."""


@dataclass(frozen=True)
class Moment:
    """When a run is asked."""

    comes: Comes
    delay: tuple[float, float]
    "Seconds after that, drawn."
    settings: dict[str, Any]
    script: str | None = None
    before_steps: bool = False
    "Whether there is nothing to save yet."
    alone: bool = True
    "Whether one rank alone may be asked."


def next_line(folder: Path, before: int) -> bool:
    return step_reached(before + 2)(folder)


def begun(folder: Path, _: int) -> bool:
    """Whether the run has said that it begins or goes on: it compiles then, if it does."""
    return (events(folder) or [{}])[-1].get("event") in ("started", "resumed")


def evaluates(folder: Path, before: int) -> bool:
    """Whether the line of the step before the next evaluation is written."""
    return step_reached(before + 2 - before % 2)(folder)


def saves(folder: Path, before: int) -> bool:
    return step_reached(before + 1)(folder) and any((folder / "checkpoints").glob("*.tmp"))


def stalls(folder: Path, before: int) -> bool:
    return step_reached(before + 3)(folder)


MOMENTS = {
    "a step": Moment(next_line, (0.0, 0.1), {}),
    "an evaluation": Moment(evaluates, (0.0, 0.3), {"evaluate_every": 2}),
    "a save": Moment(saves, (0.0, 0.005), {"save_every": 1}),
    "a data stall": Moment(stalls, (0.5, 0.6), {}, script=STALLED, alone=False),
    "a compilation": Moment(
        begun, (0.2, 3.0), {"engine.compile": "on"}, before_steps=True, alone=False
    ),
}


def events(folder: Path) -> list[dict[str, Any]]:
    """What is written down of a run, [] before it has begun."""
    try:
        return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    except (OSError, ValueError):  # a line is being written
        return []


def lines_of(runs: Runs, name: str) -> list[dict[str, Any]]:
    """The metrics of a run's steps, without its evaluations."""
    return [line for line in runs.metrics(name) if "loss" in line]


def listens(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> list[dict[str, Any]]:
    """The lines of a run that nobody asked to stop."""
    runs.finished(2, launched=False, name="unasked", **RUN)
    return lines_of(runs, "unasked")


def ask(
    ranks: list[Any], number: signal.Signals, draw: random.Random, moment: Moment
) -> tuple[list[int | None], float, bool]:
    """Signals all ranks, or one of them where that may be: their exit codes, None where one did
    not leave in time, the seconds, and whether rank 0 was asked itself."""
    whom = draw.choice([ranks, ranks[:1], ranks[1:]]) if moment.alone else ranks
    asked_at = time.monotonic()
    for rank in whom:
        rank.send_signal(number)
    codes: list[int | None] = [None] * len(ranks)
    for index, rank in enumerate(ranks):
        with suppress(subprocess.TimeoutExpired):
            codes[index] = rank.wait(timeout=max(asked_at + WITHIN - time.monotonic(), 0.01))
    return codes, time.monotonic() - asked_at, ranks[0] in whom


def wrong_with(
    folder: Path, since: list[dict[str, Any]], before: int, why: str | None, moment: Moment
) -> str:
    """What is not as it should be in what a session wrote that was asked to stop; "" if nothing."""
    told = events(folder)[len(since) :]
    last = told[-1] if told else {}
    if last.get("event") != "stopped" or (why and last["why"] != why):
        return f"told {told}"
    if moment.before_steps:
        return "" if last["step"] is None else "it was no longer before the first step"
    if "evaluate_every" in moment.settings:
        hit = before + 2 - before % 2
        scored = f'"step": {hit}, "val/' in (folder / "metrics.jsonl").read_text()
        if last["step"] != hit or scored:
            return f"the evaluation after step {hit} was not ended: {last}"
    path = folder / "checkpoints" / f"step-{last['step']:08d}" / "manifest.json"
    return "" if last["step"] > before and path.exists() else f"{path} is missing"


@pytest.mark.parametrize("what", MOMENTS)
def test_whoever_asks_whenever_is_heard_and_the_next_start_goes_on(
    runs: Runs, whole: list[dict], draw: random.Random, record: Record, what: str
) -> None:
    """Each session goes on where the one before was asked to stop, and is asked itself."""
    moment, name = MOMENTS[what], what.replace(" ", "-")
    settings = RUN | moment.settings | {"name": name}
    folder, before = runs.folder / "runs" / name, 0
    if moment.before_steps:  # there is something to load
        before = 4
        runs.finished(2, launched=False, **RUN | {"name": name, "steps": before})
    tries = []
    asked = replace(runs, script=moment.script or runs.script)
    for why, number in ASKED.items():
        since = events(folder)

        def comes(path: Path, since: list = since, step: int = before) -> bool:
            return len(events(path)) > len(since) and moment.comes(path, step)

        with asked.at(comes, 2, **settings) as ranks:
            time.sleep(draw.uniform(*moment.delay))
            codes, seconds, first = ask(ranks, number, draw, moment)
            said = "".join(rank.stdout.read() + rank.stderr.read() for rank in ranks)
        problem = wrong_with(folder, since, before, why if first else None, moment)
        if codes != [0, 0] or seconds > WITHIN:
            problem = f"exit codes {codes} after {seconds:.1f} s; {problem}"
        tries.append((why, f"{problem}\n{said}" if problem else "", seconds))
        before = events(folder)[-1].get("step") or before
    finished = runs.finished(2, launched=False, **RUN | {"name": name})
    same = lines_of(runs, name) == whole
    resumed = [event["step"] for event in events(folder) if event["event"] == "resumed"]
    same &= resumed[-1] == before
    for why, problem, _ in tries:
        record(why, same and not problem, problem or f"it went on otherwise: {finished}", what)
    assert max(seconds for *_, seconds in tries) < WITHIN


def test_a_start_that_is_asked_to_stop_leaves_at_once_and_spoils_nothing(
    runs: Runs, whole: list[dict], draw: random.Random, record: Record
) -> None:
    """While the ranks meet, read data, build the model, make the engine and load. One that does
    not listen yet dies of the signal, which is as good, and the one that waits for it leaves. A
    moment may be drawn that is too late for all that; then the run has saved."""
    name, tries = "start-up", []
    settings = RUN | {"name": name}
    runs.finished(2, launched=False, **settings | {"steps": 4})
    folder = runs.folder / "runs" / name
    for why, number in list(ASKED.items()) * 3:
        since = events(folder)
        with runs.ranks(2, **settings) as ranks:
            needed, delay = draw.choice([(ranks, 1.0), (ranks[:1], 0.01)])
            # SIGALRM's is the last handler that a run installs; Python itself has one for SIGINT
            while not all(listens(rank.pid, signal.SIGALRM) for rank in needed):
                assert all(rank.poll() is None for rank in ranks)
                time.sleep(0.002)
            time.sleep(draw.uniform(0.0, delay))
            deaf = [not listens(rank.pid, signal.SIGALRM) for rank in ranks]
            codes, *_ = ask(ranks, number, draw, MOMENTS["a compilation"])
            said = "".join(rank.stdout.read() + rank.stderr.read() for rank in ranks)
        last = events(folder)[len(since) :][-1:]
        good = all(code == 0 or (code and died) for code, died in zip(codes, deaf, strict=True))
        good = good and bool(last) and last[0]["event"] == "stopped"
        late = good and last[0]["step"] is not None
        tries.append((why, good and last[0]["why"] == why, late, f"{codes} {last} {said}"))
    runs.finished(2, launched=False, **settings)
    same = lines_of(runs, name) == whole
    for why, good, late, detail in tries:
        record(why, bool(good and same), detail, "the first step" if late else "start-up")
    assert not all(late for _, _, late, _ in tries)


def test_a_run_looks_at_its_own_clock(runs: Runs, whole: list[dict], record: Record) -> None:
    """The true timer: in the middle of a run, and before one has begun."""
    settings = RUN | {"name": "clock"}
    for limit, moment in ((20.0, "a step, by its timer"), (0.3, "start-up, by its timer")):
        began, since = time.monotonic(), events(runs.folder / "runs/clock")
        more = {"steps": 100_000, "limits.wall_clock": limit / 60}
        done = runs.run(2, launched=False, **settings | more)
        took = time.monotonic() - began
        last = events(runs.folder / "runs/clock")[len(since) :][-1]
        good = done.returncode == 0 and (last["event"], last["why"]) == ("stopped", "wall clock")
        good &= limit <= took < limit + WITHIN and (last["step"] is None) == (limit < 1.0)
        record("wall clock", good, f"{took:.1f} s, {last}, {done.stderr}", moment)
    reached = len(lines_of(runs, "clock"))
    assert reached > 3
    runs.finished(2, launched=False, **settings | {"steps": reached + 2})
    both = min(reached, len(whole))
    assert lines_of(runs, "clock")[:both] == whole[:both]
