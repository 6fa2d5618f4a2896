"""Runs that are asked to stop save and leave; runs that stand still end. Every signal at every
moment, and the launcher between them, is in tests/faults/test_stops.py."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import Runs
from tests.test_run import step_reached

STALLED = str(Path(__file__).with_name("train_stalled.py"))
ENDLESS = dict(steps=100_000, save_every=0, logging__sample_tokens=0)


@pytest.fixture(scope="module")
def hung(runs: Runs) -> Iterator[list[forked.Forked]]:
    """Two ranks, of which somebody stopped the last; their seconds pass beside the other tests."""
    limits = dict(limits__hang=5, data__retry_seconds=1)
    with runs.at(step_reached(3), 2, name="hung", **ENDLESS | limits) as ranks:
        os.kill(ranks[1].pid, signal.SIGSTOP)
        yield ranks


def test_a_rank_that_waits_for_data_leaves_with_the_others(runs, hung):
    """Rank 1 has no batch and is asked; rank 0 has one, which it gives back. Both save the steps
    before, and the next start goes on there."""
    stalled, name = replace(runs, script=STALLED), "stalled"
    with stalled.at(step_reached(3), 2, name=name, **ENDLESS) as ranks:
        time.sleep(0.5)  # rank 1 waits by now
        ranks[1].send_signal(signal.SIGTERM)
        assert [rank.wait(timeout=30) for rank in ranks] == [0, 0]
        assert "stopped and saved at step 3; the same command goes on" in ranks[0].stdout.read()
    saved, stopped = runs.events(name)[-2:]
    assert (saved["event"], saved["step"]) == ("saved", 3)
    assert (stopped["event"], stopped["step"], stopped["why"]) == ("stopped", 3, "SIGTERM")
    runs.finished(2, launched=False, name=name, **ENDLESS | dict(steps=5))
    assert len(runs.losses(name)) == 5


def test_the_end_of_the_deepspeed_command_alone_saves_and_ends_its_ranks(runs):
    name = "orphaned"
    # What it printed to goes with it, as with a lost connection.
    runs.interrupted(
        step_reached(3), signal.SIGTERM, 2, whole_group=False, name=name, **ENDLESS
    ).stdout.close()
    deadline = time.monotonic() + 60
    while runs.events(name)[-1]["event"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert runs.events(name)[-1]["why"] == "the deepspeed command ended"
    assert runs.events(name)[-2]["event"] == "saved"


def test_a_rank_that_stands_still_ends_the_run_and_every_rank_says_where_it_was(runs, hung):
    assert [rank.wait(timeout=60) for rank in hung] == [4, 4]
    last = runs.events("hung")[-1]
    assert last["event"] == "hung" and "limits.hang=5" in last["why"]
    for rank in (0, 1):
        stacks = (runs.folder / f"runs/hung/logs/stacks-rank-{rank}.txt").read_text()
        assert "has stood still for" in stacks and "train.py" in stacks, stacks
