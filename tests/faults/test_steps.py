"""Bad losses and gradients in whole runs of two ranks, of which the last one has them: every stage
skips them, goes back over them, or ends in a sentence, as it was told to."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Runs
from tests.poison import POISONED, ROWS, RUN, of_kind, poison, rows_of
from tests.test_run import step_reached

pytestmark = pytest.mark.long
Record = Callable[..., None]
# What is said of each fault, and the step, from 0, whose rows have it.
FAULTS = {
    "nan loss": (6, "the loss on rank 1 is nan"),
    "infinite gradient": (8, "the loss is finite and the gradient is not"),
    "loss spike": (10, "the loss "),
    "norm spike": (12, "the gradient's norm "),
}
LAYOUTS = [
    (stage, dtype)
    for dtype in ("float32", "bfloat16")
    for stage in ("zero0", "zero1", "zero2", "zero3", "offload")
]
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-4}
"""Of a loss between layouts, relative; as for runs that change their layout (test_elastic.py)."""


@pytest.fixture(scope="module")
def clean(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs in a folder where one run, `clean`, was on data without poison."""
    watched = replace(runs, folder=tmp_path_factory.mktemp("poisoned"), script=POISONED)
    poison(watched)
    finished(watched, "clean")
    return watched


def finished(runs: Runs, name: str, **settings: object) -> None:
    runs.finished(2, launched=False, name=name, **RUN | settings)


def taken(runs: Runs, name: str) -> list[list[str]]:
    """The rows of each step that was taken, in the order of taking, over both ranks; the second
    half of each step's is the last rank's."""
    both = rows_of(runs, name), rows_of(runs, name, rank=1)
    return [first + last for first, last in zip(*both, strict=True)]


def poison_at(clean: Runs, faults: dict[str, list[int]]) -> list[list[str]]:
    """Poisons what the last rank has of these steps of `clean`; the rows of all its steps."""
    order = taken(clean, "clean")
    doses = [
        {"kind": kind, "rows": order[step][ROWS // 2 :]}
        for kind, steps in faults.items()
        for step in steps
    ]
    poison(clean, *doses)
    return order


def losses(runs: Runs, name: str, without: set[int]) -> list[float]:
    """By step, but for these, counted from 0."""
    lines = [line for line in runs.metrics(name) if "loss" in line]
    return [line["loss"] for line in lines if line["step"] - 1 not in without]


def differ(one: list[float], other: list[float]) -> float:
    """How far two curves are apart, relative; infinite where one has a step that is not there."""
    if len(one) != len(other) or None in one + other:
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def test_every_layout_skips_every_kind_of_bad_step_and_goes_on_alike(
    clean: Runs, record: Record
) -> None:
    poison_at(clean, {kind: [step] for kind, (step, _) in FAULTS.items()})
    bad, first = {step for step, _ in FAULTS.values()}, {}
    for stage, dtype in LAYOUTS:
        name = f"skips-{stage}-{dtype}"
        finished(clean, name, engine=stage, engine__dtype=dtype)
        skipped = {event["step"]: event for event in of_kind(clean.events(name), "skipped")}
        curve = losses(clean, name, without=bad)
        apart = differ(curve, first.setdefault(dtype, curve))
        fine = set(skipped) == bad and apart <= TOLERANCE[dtype]
        fine &= clean.events(name)[-1]["event"] == "finished"
        for kind, (step, why) in FAULTS.items():
            told = fine and skipped[step]["why"].startswith(why)
            detail = f"{stage} {dtype}, apart by {apart:.1e}, {skipped}"
            record(f"{kind}, skipped", told, detail, f"{stage} {dtype}")


def test_every_stage_goes_back_and_passes_over_the_rows_that_spoil_it(
    clean: Runs, record: Record
) -> None:
    """And one that is killed as it has gone back ends as one that is not."""
    faults = {"nan loss": [6], "infinite gradient": [7], "norm spike": [8]}
    order, first = poison_at(clean, faults), []
    settings = dict(stability="rollback", save_every=2)
    for stage in ("zero0", "zero1", "zero2", "zero3"):
        name = f"back-{stage}"
        finished(clean, name, engine=stage, **settings)
        events, rows = clean.events(name), taken(clean, name)
        back = of_kind(events, "rolled_back")
        skipped = [event["step"] for event in of_kind(events, "skipped")]
        every = sum(rows, [])
        curve = losses(clean, name, without=set())
        first = first or curve
        fine = skipped == [6, 7, 8] and len(back) == 1 and rows[: len(order)] == order
        fine = fine and back[0]["passed_over"] == [6 * ROWS, 9 * ROWS - 1]
        fine &= len(rows) == 16 + 3 and len(set(every)) == len(every)
        fine &= differ(curve, first) <= TOLERANCE["float32"]
        record("bad rows, gone back", fine, f"{stage} {events} {curve} {first}", stage)
    state = json.loads(
        (clean.folder / "runs/back-zero3/checkpoints/step-00000016/manifest.json").read_text()
    )["state"]
    assert (state["rollbacks"], state["position"]) == (1, 19 * ROWS)

    def has_gone_back(folder: Path) -> bool:
        file = folder / "events.jsonl"
        return file.exists() and '"rolled_back"' in file.read_text()

    how = dict(name="back-killed", engine="zero2", **settings)
    with clean.at(has_gone_back, 2, **RUN | how):
        pass  # the end of it is a kill
    clean.finished(2, launched=False, **RUN | how)
    fine = clean.metrics("back-killed") == clean.metrics("back-zero2")
    record("killed as it has gone back", fine, f"{clean.events('back-killed')}")


def test_a_killed_run_decides_in_the_middle_of_a_window_as_an_unbroken_one(
    clean: Runs, record: Record
) -> None:
    """Spikes are skipped by what came before, which a checkpoint keeps to the bit."""
    poison_at(clean, {"loss spike": [6, 11]})
    finished(clean, "spikes", save_every=4)
    skipped = of_kind(clean.events("spikes"), "skipped")
    assert [event["step"] for event in skipped] == [6, 11]
    assert all("is above" in event["why"] for event in skipped)
    settings = dict(name="broken", save_every=4)

    def saved_and_beyond(folder: Path) -> bool:
        return (folder / "checkpoints/latest").exists() and step_reached(9)(folder)

    with clean.at(saved_and_beyond, 2, **RUN | settings) as ranks:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
    clean.finished(2, launched=False, **RUN | settings)
    fine = "resumed" in [event["event"] for event in clean.events("broken")]
    fine &= clean.metrics("broken") == clean.metrics("spikes")
    fine &= clean.metrics("broken")[-1].get("skipped_steps", 2) == 2
    record("SIGKILL between two spikes", fine, f"{clean.events('broken')}")


@pytest.mark.parametrize(
    "mode, words", [("rollback", "went back 2 times"), ("skip", "such steps: 3 of the last 8")]
)
def test_what_stays_bad_ends_with_a_sentence(
    clean: Runs, record: Record, mode: str, words: str
) -> None:
    poison(clean, {"kind": "nan loss", "from_step": 5})
    bound: dict[str, Any] = dict(stability=mode, stability__max_rollbacks=2, save_every=2)
    done = clean.run(2, launched=False, name=f"bad-{mode}", **RUN | bound)
    events = [event["event"] for event in clean.events(f"bad-{mode}")]
    fine = done.returncode == 3 and words in done.stderr and "Traceback" not in done.stderr
    fine &= events[-1] == "diverged" and events.count("rolled_back") == (mode == "rollback") * 2
    record("what stays bad", fine, f"{done.stderr} {events}", mode)


@pytest.mark.parametrize("kind", FAULTS)
def test_without_it_what_is_not_finite_ends_the_run_and_spikes_are_trained_on(
    clean: Runs, record: Record, kind: str
) -> None:
    name = f"off-{kind.replace(' ', '-')}"
    poison_at(clean, {kind: [6]})
    done = clean.run(2, launched=False, name=name, stability="off", **RUN)
    events = clean.events(name)
    if "spike" in kind:
        fine = done.returncode == 0 and not of_kind(events, "skipped")
    else:
        fine = done.returncode == 3 and "step 7: the loss " in done.stderr
        fine &= events[-1]["event"] == "diverged" and events[-1]["step"] == 6
    record(f"{kind}, stability=off", fine, f"{done.returncode} {done.stderr} {events}")
