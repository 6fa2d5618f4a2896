"""train.py on data of which some is poison: rows whose loss is nan, or far too large, on whichever
rank they come to. `poison.json` of the working folder says which: {"kind": "nan" or "spike",
"rows": digests} or {"kind": ..., "from_step": the first step}. Keeps the record of train_seen."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

from retnet.training import step as steps
from tests.faults import train_seen

POISON = json.loads(Path("poison.json").read_text())
ADDED = {"nan": float("nan"), "spike": 50.0}[POISON["kind"]]
_hooked: set[int] = set()
_bad = [False]


def poisoned(engine: Any, micro_batches: list[dict[str, Any]], **how: Any) -> Any:
    """As `train_step`, with the loss of each poisoned step spoilt on the last rank."""
    if id(engine) not in _hooked:
        _hooked.add(id(engine))
        engine.module.register_forward_hook(_spoil)
    rows = {digest for batch in micro_batches for digest in train_seen.digests(batch)}
    _bad[0] = bool(rows & set(POISON.get("rows", ()))) or how["step"] >= POISON.get(
        "from_step", 1e9
    )
    queued = train_seen.recording(engine, micro_batches, **how)
    _bad[0] = False
    return queued


def _spoil(module: Any, given: Any, output: Any) -> None:
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1
    if _bad[0] and int(os.environ.get("RANK", "0")) == last:
        output.loss = output.loss + ADDED


if __name__ == "__main__":
    steps.train_step = poisoned
    runpy.run_path(train_seen.TRAIN, run_name="__main__")
