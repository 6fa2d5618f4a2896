"""train.py on data of which some is poison: rows whose loss or gradient is bad, on whichever rank
they come to. `poison.json` of the working folder says which, see poison.py. Keeps the record of
train_seen."""

import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from retnet.training import step as steps
from tests.faults import train_seen

FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan loss": lambda loss: loss + float("nan"),
    # of the value zero, and no finite slope
    "infinite gradient": lambda loss: loss + ((loss - loss.detach()) ** 2).sqrt(),
    "loss spike": lambda loss: loss + 50.0,
    "norm spike": lambda loss: loss + 1e6 * (loss - loss.detach()),
}
DOSES = json.loads(Path("poison.json").read_text())
_hooked: set[int] = set()
_faults: list[str] = []


def poisoned(engine: Any, micro_batches: list[dict[str, Any]], **how: Any) -> Any:
    """As `train_step`, with the loss of each poisoned step spoilt on the last rank."""
    if id(engine) not in _hooked:
        _hooked.add(id(engine))
        engine.module.register_forward_hook(_spoil)
    rows = {digest for batch in micro_batches for digest in train_seen.digests(batch)}
    for dose in DOSES:
        bad = dose.setdefault("rows", [])
        if how["step"] in dose.get("at", ()):
            dose["at"].remove(how["step"])
            bad += rows
        if rows & set(bad) or how["step"] >= dose.get("from_step", 1e9):
            _faults.append(dose["kind"])
    queued = train_seen.recording(engine, micro_batches, **how)
    _faults.clear()
    return queued


def _spoil(module: Any, given: Any, output: Any) -> None:
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1
    if int(os.environ.get("RANK", "0")) == last:
        for fault in _faults:
            output.loss = FAULTS[fault](output.loss)


if __name__ == "__main__":
    steps.train_step = poisoned
    runpy.run_path(train_seen.TRAIN, run_name="__main__")
