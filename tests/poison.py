"""What is put into the data of runs of train_poisoned.py, and which rows these runs took."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import Runs

POISONED = str(Path(__file__).with_name("train_poisoned.py"))
RUN = dict(steps=16, stability__window=8, schedule="constant", logging__sample_tokens=0)
"""Runs whose limits come from two steps on and whose strikes soon count no more."""
ROWS = 8
"""Of a step."""


def poison(runs: Runs, *doses: dict[str, Any]) -> None:
    """From now on runs there find these in their data, and no others: {"kind": ..., "rows":
    digests}, {"kind": ..., "at": steps}, which is the rows that a session first takes at these, or
    {"kind": ..., "from_step": the first step}; the kinds are train_poisoned's."""
    (runs.folder / "poison.json").write_text(json.dumps(doses))


def rows_of(runs: Runs, name: str, rank: int = 0) -> list[list[str]]:
    """A rank's rows, a digest each, of each step that was taken, in the order of taking."""
    lines = (runs.folder / f"rows-{rank}.jsonl").read_text().splitlines()
    entries = map(json.loads, lines)
    return [entry["rows"] for entry in entries if entry["name"] == f"name={name}"]


def of_kind(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of the events."""
    return [event for event in events if event["event"] == kind]
