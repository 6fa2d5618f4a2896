"""train.py, and beside it a record of every row that each step was given: one line per step in
`rows-RANK.jsonl` of the working folder, with the run's name and a digest of each row's tokens."""

import hashlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from retnet.training import step as steps

TRAIN = str(Path(__file__).parents[2] / "train.py")
NAME = next(word for word in sys.argv if word.startswith("name="))
_train_step = steps.train_step


def digests(batch: dict[str, Any]) -> list[str]:
    """One for each row."""
    rows = [row.cpu().numpy().tobytes() for row in batch["input_ids"]]
    return [hashlib.sha256(row).hexdigest()[:16] for row in rows]


def recording(engine: Any, micro_batches: list[dict[str, Any]], **how: Any) -> Any:
    """As `train_step`, and the record."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    rows = [digest for batch in micro_batches for digest in digests(batch)]
    line = {"name": NAME, "step": how["step"], "rank": rank, "ranks": ranks, "rows": rows}
    with Path(f"rows-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return _train_step(engine, micro_batches, **how)


if __name__ == "__main__":
    steps.train_step = recording
    runpy.run_path(TRAIN, run_name="__main__")
