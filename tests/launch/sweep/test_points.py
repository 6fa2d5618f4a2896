"""A point's name is the point's own, and its state is what its folder says."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweep.points import canonical, objective_of, point_name, short_names, state_of
from tests import forked

KEYS = ["optimizer.learning_rate", "model", "model.dropout", "data.dropout", "seed"]
words = st.text(string.ascii_letters + string.digits + "._-/ é*", max_size=120)
values = st.one_of(
    st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False), words, st.lists(words)
)
# near each other: what may be taken for the other
tricky = st.sampled_from([1, 1.0, "1", True, "true", None, "null", 1e20, "1e20", 0.1, 0.1 + 1e-9])
points = st.dictionaries(st.sampled_from(KEYS), st.one_of(values, tricky), min_size=1)


@given(points, points)
def test_two_points_have_one_name_only_where_they_are_equal(one: dict, other: dict) -> None:
    if set(one) == set(other):  # as in one sweep
        assert (point_name(one) == point_name(other)) == (canonical(one) == canonical(other))


@given(points)
def test_a_name_is_a_folders_and_knows_no_order(swept: dict) -> None:
    name = point_name(swept)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,88}", name)
    assert point_name(dict(reversed(swept.items()))) == name


@pytest.mark.parametrize(
    "swept, name",
    [
        ({"optimizer.learning_rate": 3e-4}, "learning_rate-0.0003"),
        ({"model": "retnet_tiny", "seed": 2}, "model-retnet_tiny__seed-2"),
        ({"model.dropout": 0.1, "data.dropout": 0}, "data.dropout-0__model.dropout-0.1"),
        ({"model.gated": False, "tokens": 2e20}, "gated-false__tokens-2e20"),
    ],
)
def test_a_name_can_be_read(swept: dict[str, Any], name: str) -> None:
    assert point_name(swept) == name


def test_a_name_is_as_short_as_tells_the_keys_apart() -> None:
    assert short_names(["a.b.c", "d.b.c", "e.c", "f"]) == {
        **{"a.b.c": "a.b.c", "d.b.c": "d.b.c"},
        **{"e.c": "e.c", "f": "f"},
    }


def written(folder: Path, *events: dict) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return folder


STARTED = {"event": "started", "step": 0, "of": 9}
STATES = {
    "new": [],
    "killed": [STARTED, {"event": "saved", "step": 4}],
    "finished": [STARTED, {"event": "finished", "step": 9}],
    "stopped": [STARTED, {"event": "stopped", "step": 4, "why": "SIGTERM"}],
    "failed": [STARTED, {"event": "failed", "code": 1, "why": "a cable"}],
    "refused": [STARTED, {"event": "failed", "code": 2, "why": "no such data"}],
    "diverged": [STARTED, {"event": "diverged", "step": 3, "why": "not finite"}],
}


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_what_the_run_wrote_down(state: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "point", *STATES[state]) if STATES[state] else tmp_path / "point"
    assert state_of(folder, 9) == state
    assert state_of(folder, 9, pruned=True) == (state if state in ("new", "finished") else "pruned")


def test_a_run_that_finished_with_fewer_steps_goes_on(tmp_path: Path) -> None:
    folder = written(tmp_path / "point", *STATES["finished"])
    assert state_of(folder, 18) == "stopped"
    written(folder, {"event": "resumed", "step": 9, "of": 9})
    assert state_of(folder, 9) == "finished" and state_of(folder, 18) == "stopped"


def test_a_run_that_was_killed_before_its_export_is_not_finished(tmp_path: Path) -> None:
    """Killed once more after it had gone on from its last step."""
    resumed = {"event": "resumed", "step": 9, "of": 9}
    folder = written(tmp_path / "point", STARTED, {"event": "saved", "step": 9}, resumed)
    assert state_of(folder, 9) == "killed"


def test_a_run_that_hung_has_failed(tmp_path: Path) -> None:
    assert state_of(written(tmp_path / "point", STARTED, {"event": "hung"}), 9) == "failed"


def test_a_run_that_is_at_work_is_told_by_its_lock(tmp_path: Path) -> None:
    """The lock is another process's: one's own is no sign."""
    folder = written(tmp_path / "point", *STATES["stopped"])
    code = (
        "import sys, time, pathlib; from launch.lock import hold_folder;"
        "held = hold_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    process = forked.start("-c", code, str(folder), folder=tmp_path)
    while "held" not in process.stdout.read():
        assert process.poll() is None
    assert state_of(folder, 9) == "running"
    process.kill()
    process.wait(timeout=10)
    assert state_of(folder, 9) == "stopped"


def test_the_objective_is_the_newest_loss_of_the_first_set_or_the_metric_named() -> None:
    lines = [
        {"step": 2, "val/web/loss": 3.0, "val/code/loss": 2.0},
        {"step": 4, "val/web/loss": 2.5, "val/web/bits_per_byte": 1.0, "val/code/loss": 1.5},
        {"step": 6, "loss": 2.0, "val/code/loss": None},
    ]
    assert objective_of(lines[:2]) == 2.5
    assert objective_of(lines, "val/code/loss") == 1.5
    assert objective_of(lines, "loss") == 2.0
    assert objective_of(lines, "mfu") is None and objective_of([]) is None
