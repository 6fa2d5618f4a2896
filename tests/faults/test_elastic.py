"""A run that is stopped again and again, each time going on with other ranks in another layout,
trains on the same rows and along the same curve as one that is never stopped."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_run import step_reached

SEEN = str(Path(__file__).with_name("train_seen.py"))
# 12 rows and 12 streams can be shared out over 1, 2, 3, 4 and 6 ranks.
RUN = dict(steps=20, global_batch_size=12, micro_batch_size=1, data__streams=12)
LAYOUTS = [(1, "zero1"), (2, "zero3"), (4, "zero2"), (3, "offload"), (2, "zero0")]
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
"Of a loss, relative: sums in another order, grown by twenty steps."


def rows_by_step(folder: Path, name: str) -> dict[int, list[str]]:
    """The rows of each step in the order of the whole run: row i is rank i mod ranks's. Where a
    step was taken twice, by runs of the same name, both must have seen the same."""
    shares: dict[tuple[int, int], dict[int, list[str]]] = {}
    for file in folder.glob("rows-*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["name"] == f"name={name}":
                share = shares.setdefault((line["step"], line["ranks"]), {})
                assert share.setdefault(line["rank"], line["rows"]) == line["rows"]
    found: dict[int, list[str]] = {}
    for (step, ranks), share in shares.items():
        columns = [share[rank] for rank in range(ranks)]
        rows = [row for each in zip(*columns, strict=True) for row in each]
        assert found.setdefault(step, rows) == rows, f"step {step} on {ranks} ranks"
    return found


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_and_layouts_come_and_go(runs, record, dtype, tmp_path):
    watched = replace(runs, folder=tmp_path, script=SEEN)
    how = RUN | dict(engine__dtype=dtype, logging__sample_tokens=0)
    watched.finished(2, launched=False, name="whole", engine="zero2", **how)
    for number, (ranks, engine) in enumerate(LAYOUTS):
        settings = dict(name="moving", engine=engine, **how)
        if number == len(LAYOUTS) - 1:
            watched.finished(ranks, launched=False, **settings)
        else:
            until = step_reached(3 * (number + 1))
            watched.interrupted(until, signal.SIGTERM, ranks, **settings)
        event = watched.events("moving")[-1]
        record(
            f"goes on with {ranks} ranks, {engine}, {dtype}",
            event["event"] in ("stopped", "finished"),
        )
    expected, losses = watched.losses("whole"), watched.losses("moving")
    worst = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
    record(f"the same curve, {dtype}", worst <= TOLERANCE[dtype], f"{worst:.2e}")
    rows = rows_by_step(tmp_path, "whole")
    assert sorted(rows) == list(range(20)) and all(len(each) == 12 for each in rows.values())
    record(f"the same rows, {dtype}", rows_by_step(tmp_path, "moving") == rows)
