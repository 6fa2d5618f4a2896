"""Whole runs on data of which some is poison: they pass it over, go back, or end in a sentence."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Runs
from tests.test_run import step_reached

POISONED = str(Path(__file__).with_name("train_poisoned.py"))
RUN = dict(steps=16, stability__window=8, schedule="constant", logging__sample_tokens=0)
ROWS = 8  # of a step


@pytest.fixture(scope="module")
def clean(runs, tmp_path_factory) -> Runs:
    """Runs in a folder where one run, `clean`, was on data without poison."""
    watched = replace(runs, folder=tmp_path_factory.mktemp("poisoned"), script=POISONED)
    poison(watched, rows=[])
    watched.finished(name="clean", **RUN)
    return watched


def poison(runs: Runs, kind: str = "nan", **where) -> None:
    """From now on runs there find this in their data."""
    (runs.folder / "poison.json").write_text(json.dumps({"kind": kind, **where}))


def rows_of(runs: Runs, name: str) -> list[list[str]]:
    """The rows of each step that was taken, in the order of taking."""
    lines = (runs.folder / "rows-0.jsonl").read_text().splitlines()
    entries = map(json.loads, lines)
    return [entry["rows"] for entry in entries if entry["name"] == f"name={name}"]


def test_nothing_is_refused_in_a_run_without_poison(clean):
    assert {event["event"] for event in clean.events("clean")} == {"started", "saved", "finished"}
    assert not any("skipped_steps" in line for line in clean.metrics("clean"))


def test_a_run_goes_back_and_passes_over_the_rows_that_spoil_it(clean):
    """Three steps' rows are bad: back to the checkpoint before them, on with the rows after."""
    order = rows_of(clean, "clean")
    poison(clean, rows=sum(order[6:9], []))
    clean.finished(name="back", stability="rollback", save_every=2, **RUN)
    events = clean.events("back")
    assert [event["step"] for event in events if event["event"] == "skipped"] == [6, 7, 8]
    (back,) = [event for event in events if event["event"] == "rolled_back"]
    assert (back["step"], back["to"]) == (9, 6)
    assert back["passed_over"] == [6 * ROWS, 9 * ROWS - 1]
    taken = rows_of(clean, "back")
    assert taken[: len(order)] == order, "the order of the data is what it was"
    every = sum(taken, [])
    assert len(taken) == 16 + 3 and len(set(every)) == len(every), "no row twice"
    lines = [line for line in clean.metrics("back") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert all(line["loss"] is not None for line in lines)
    assert [line["loss"] for line in lines[:6]] == clean.losses("clean")[:6]
    folder = clean.folder / "runs/back/checkpoints/step-00000016"
    state = json.loads((folder / "manifest.json").read_text())["state"]
    assert (state["rollbacks"], state["position"]) == (1, 19 * ROWS)


def test_a_killed_run_decides_in_the_middle_of_a_window_as_an_unbroken_one(clean):
    """Spikes are skipped by what came before, which a checkpoint keeps to the bit."""
    order = rows_of(clean, "clean")
    poison(clean, kind="spike", rows=order[6] + order[11])
    clean.finished(name="spikes", save_every=4, **RUN)
    skipped = [event for event in clean.events("spikes") if event["event"] == "skipped"]
    assert [event["step"] for event in skipped] == [6, 11]
    assert all("is above" in event["why"] for event in skipped)
    settings = dict(name="broken", save_every=4, **RUN)

    def saved_and_beyond(folder: Path) -> bool:
        return (folder / "checkpoints/latest").exists() and step_reached(9)(folder)

    clean.interrupted(saved_and_beyond, signal.SIGKILL, **settings)
    clean.finished(**settings)
    assert "resumed" in [event["event"] for event in clean.events("broken")]
    assert clean.metrics("broken") == clean.metrics("spikes")
    assert clean.metrics("broken")[-1].get("skipped_steps", 2) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "mode, words", [("rollback", "went back 2 times"), ("skip", "such steps: 3 of the last 8")]
)
def test_what_stays_bad_ends_with_a_sentence(clean, mode, words):
    poison(clean, from_step=5)
    bound = dict(stability=mode, stability__max_rollbacks=2, save_every=2)
    done = clean.run(2, launched=False, name=f"bad-{mode}", **RUN, **bound)
    assert done.returncode == 3, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    events = [event["event"] for event in clean.events(f"bad-{mode}")]
    assert events[-1] == "diverged" and events.count("rolled_back") == (mode == "rollback") * 2


@pytest.mark.long
def test_without_it_the_first_bad_step_ends_the_run(clean):
    poison(clean, from_step=5)
    done = clean.run(name="off", stability="off", save_every=2, **RUN)
    assert done.returncode == 3 and "step 6: the loss on rank 0 is nan" in done.stderr
