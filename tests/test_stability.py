"""A whole run on data of which some is poison. Every kind, at every stage, and how it ends where
nothing helps, is in tests/faults/test_steps.py."""

import json
from dataclasses import replace

from tests.poison import POISONED, ROWS, RUN, of_kind, poison, rows_of


def test_a_run_goes_back_and_passes_over_the_rows_that_spoil_it(runs, tmp_path):
    """Three steps' rows are bad: back to the checkpoint before them, on with the rows after."""
    watched = replace(runs, folder=tmp_path, script=POISONED)
    poison(watched, {"kind": "nan loss", "at": [6, 7, 8]})
    watched.finished(name="back", stability="rollback", save_every=2, **RUN)
    events = watched.events("back")
    assert [event["step"] for event in of_kind(events, "skipped")] == [6, 7, 8]
    (back,) = of_kind(events, "rolled_back")
    assert (back["step"], back["to"]) == (9, 6)
    assert back["passed_over"] == [6 * ROWS, 9 * ROWS - 1]
    every = sum(taken := rows_of(watched, "back"), [])
    assert len(taken) == 16 + 3 and len(set(every)) == len(every), "no row twice"
    lines = [line for line in watched.metrics("back") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert all(line["loss"] is not None for line in lines)
    folder = watched.folder / "runs/back/checkpoints/step-00000016"
    state = json.loads((folder / "manifest.json").read_text())["state"]
    assert (state["rollbacks"], state["position"]) == (1, 19 * ROWS)
