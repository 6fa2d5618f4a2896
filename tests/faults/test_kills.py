"""SIGKILL at any moment, of one rank or of all: what was saved is there, and the run that goes on
is the run that nothing happened to, bit by bit."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from launch.sweep.points import lines_of
from retnet.training.housekeeping import checkpoints, step_of
from tests import forked
from tests.retnet.training import processes

STEPS, SAVE_EVERY, RANKS = 8, 2, 2
AIMS = ("start-up", "load", "save", "next save", "write", "last save")
"""What is under way at a kill: as workers_kills.py names it, and "write" while the thread that
writes and verifies a checkpoint, and then deletes an older one, goes on beside steps."""
WHOM = ("one rank", "all ranks")
# Seconds that ranks have to notice that one is gone; DeepSpeed's launcher looks once a second.
NOTICED = 2.0


class Whole(NamedTuple):
    """A run that nothing happened to."""

    lines: dict[int, dict[str, Any]]
    "By step."
    results: list[Any]
    "By rank."


def begin(folder: Path) -> list[forked.Forked]:
    arguments = {"steps": STEPS, "save_every": SAVE_EVERY}
    return processes.start("trained", RANKS, folder, module="workers_kills", **arguments)


def told(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 told."""
    return lines_of(folder / "told")


def results(folder: Path) -> list[Any]:
    return [torch.load(folder / f"trained-{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    for process in begin(folder):
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    lines = {line["step"]: line for line in told(folder) if "step" in line}
    assert sorted(lines) == list(range(1, STEPS + 1))
    return Whole(lines, results(folder))


def plan(times: int, draw: random.Random) -> list[tuple[str, str]]:
    """What is to be killed when, in an order that is drawn: each aim about as often as any other,
    and half of them with one rank, half with all."""
    planned: list[tuple[str, str]] = []
    while len(planned) < times:
        planned += draw.sample(every := [(aim, whom) for aim in AIMS for whom in WHOM], len(every))
    return planned[:times]


def comes(aim: str, folder: Path) -> bool:
    """Whether a session that begins now gets there."""
    found = checkpoints(folder / "checkpoints")
    newest = (step_of(found[0].name) or 0) if found else 0
    needed = {"load": newest > 0, "next save": newest + 2 * SAVE_EVERY <= STEPS}
    return needed.get(aim, aim == "start-up" or newest < STEPS)


def phase_of(folder: Path, rank: int) -> str:
    """What a rank is about, in a session before which `phase-*` were removed."""
    file = folder / f"phase-{rank}"
    word = (file.read_text().strip() if file.exists() else "") or "start-up"
    writes = word == "step" and any((folder / "checkpoints").glob("step-*.tmp"))
    return "write" if writes else word


def await_moment(
    ranks: list[forked.Forked], aim: str, draw: random.Random, folder: Path, took: dict[str, float]
) -> None:
    """Returns at a moment of what is aimed at, drawn from as many seconds as that last took, or
    when all processes have ended. `took` learns on the way."""
    at, began, moment = "start-up", time.monotonic(), None
    while any(process.poll() is None for process in ranks):
        now, phase = time.monotonic(), phase_of(folder, 0)
        if phase != at:
            took[at], at, began = now - began, phase, now
        if at == aim and moment is None:
            moment = now + draw.uniform(0.0, took.get(aim, 0.1))
        if moment is not None and now >= moment:
            return
        time.sleep(0.001)


def kill(ranks: list[forked.Forked], whom: str, draw: random.Random, folder: Path) -> str:
    """Kills one rank or all; what that rank, or rank 0, was about."""
    victim = draw.randrange(RANKS) if whom == "one rank" else 0
    for process in ranks if whom == "all ranks" else [ranks[victim]]:
        process.kill()
    phase = phase_of(folder, victim)
    deadline = time.monotonic() + NOTICED
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(0.01)
    for process in ranks:  # as a launcher does
        process.kill()
        process.wait(timeout=30)
    return phase


def verdict(before: list[dict], after: list[dict], whole: Whole) -> str:
    """What is wrong with a session after a kill; "" where nothing is. `before` is all that was
    told until the kill, `after` what the next session told."""
    saved = max((line["saved"] for line in before if "saved" in line), default=0)
    began = next((line for line in after if "began" in line), None)
    if began is None:
        return ""  # killed before it had loaded; the next one judges
    if began["began"] < saved:
        return f"step {saved} was saved, and it began at {began}"
    wrong = [line for line in after if "step" in line and line != whole.lines[line["step"]]]
    return f"other than the run without kills: {wrong[:2]}" if wrong else ""


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def kill_as_planned(
    planned: list[tuple[str, str]],
    draw: random.Random,
    record: Callable[..., None],
    whole: Whole,
    folder: Path,
) -> set[str]:
    """Kills sessions of runs, each of which goes on where the one before was killed, until all is
    done; a run that came to its end is compared, and another begins. What was hit."""
    took, hit = {}, set()
    number, pending, judged = 0, [], 0
    while True:
        run = folder / f"run-{number}"
        for file in run.glob("phase-*"):
            file.unlink()
        target = next((each for each in planned if comes(each[0], run)), None)
        ranks = begin(run)
        if target:
            await_moment(ranks, target[0], draw, run, took)
        else:
            for process in ranks:
                process.communicate(timeout=120)
        finished = all(process.poll() == 0 for process in ranks)
        broken = not finished and any(process.poll() for process in ranks)
        phase = "" if finished or broken else kill(ranks, target[1], draw, run)
        lines = told(run)
        why = verdict(lines[:judged], lines[judged:], whole)
        if broken:
            why = "".join(process.communicate()[0][-2000:] for process in ranks)
        if finished and not equal(results(run), whole.results):
            why = "other weights or moments at the end"
        if why or finished or any("began" in line for line in lines[judged:]):
            for fault, moment in pending:
                record(fault, not why, why, moment=moment)
            pending = []
        assert not broken, why
        judged = len(lines)
        if phase:
            planned.remove(target)
            pending.append((f"SIGKILL of {target[1]}", phase))
            hit.add(phase)
        elif not planned:
            return hit
        else:
            number, judged = number + 1, 0


def test_a_kill_in_a_save_loses_nothing(draw, record, whole, tmp_path) -> None:
    kill_as_planned([("next save", "one rank")], draw, record, whole, tmp_path)


@pytest.mark.long
def test_fifty_kills_lose_nothing(draw, record, whole, tmp_path) -> None:
    hit = kill_as_planned(plan(50, draw), draw, record, whole, tmp_path)
    assert hit >= set(AIMS), f"no kill came in {set(AIMS) - hit}"
