"""What one rank does in the tests of kills: a whole training loop that saves, and goes on from
what it finds, without data and without a config. See workers.py."""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from retnet.training.checkpoint import load_checkpoint
from retnet.training.engine import Precision, gather_weights
from retnet.training.housekeeping import checkpoints
from retnet.training.saver import CheckpointConfig, Saver
from retnet.training.state import TrainState
from tests.retnet.training.small_model import make_model
from tests.retnet.training.workers import main, moments, start, take_steps

BALLAST = 1_500_000
"""Numbers beside the small model: 18 MB a checkpoint, so that a save takes a while."""


def trained(folder: Path, steps: int, save_every: int) -> dict[str, object]:
    """Trains to step `steps` from the newest checkpoint in the folder, with dropout, at ZeRO 1.

    Rank 0 leaves what happens, line by line, in `told`; each rank what it is about in `phase-RANK`:
    start-up, load (where there is something to load), step, save, next save, last save or end.
    """
    told = (folder / "told").open("a", buffering=1) if dist.get_rank() == 0 else None
    phase = os.open(folder / f"phase-{dist.get_rank()}", os.O_WRONLY | os.O_CREAT)

    def mark(word: str) -> None:
        os.pwrite(phase, f"{word:<12}".encode(), 0)

    def tell(**what: object) -> None:
        if told:
            told.write(json.dumps(what) + "\n")

    mark("start-up")
    module = make_model(dropout=0.1)
    module.ballast = torch.nn.Parameter(torch.zeros(BALLAST))
    engine = start(module, 1, False, Precision.float32, 2)
    if checkpoints(folder / "checkpoints"):
        mark("load")
    loaded = load_checkpoint(engine, folder / "checkpoints")
    state = loaded.state if loaded else TrainState()
    tell(began=state.step, passed_over=loaded.passed_over if loaded else [])
    saver = Saver(engine, folder / "checkpoints", CheckpointConfig(), {}, patience=60)
    save = "save"
    mark("step")
    while state.step < steps:
        (result,) = take_steps(engine, state.step, state.step + 1)
        state.step += 1
        tell(step=state.step, loss=result.loss, norm=result.grad_norm)
        time.sleep(0.03)  # a thread's write gets a share of steps to go on under
        if state.step % save_every == 0:
            mark(save)
            saver.save(state, {})
            mark("step")
            save = "next save"
        for news in saver.news():
            tell(**{news.kind: news.step})
    mark("last save")
    saver.finish()
    for news in saver.news():
        tell(**{news.kind: news.step})
    mark("end")
    return {"weights": gather_weights(engine), "moments": moments(engine)}


if __name__ == "__main__":
    main(globals())
