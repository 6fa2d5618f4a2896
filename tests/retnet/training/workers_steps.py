"""What one rank does in the tests of bad steps: real engines over gloo, no assertions."""

import io
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.engine import gather_weights
from retnet.training.lines import read_lines
from retnet.training.metrics import Metrics
from retnet.training.optimizer import Update
from retnet.training.pieces import counter, pieces
from retnet.training.sinks import LoggingConfig, WandbMode
from retnet.training.stability import Mode, Stability, StabilityConfig
from retnet.training.state import TrainState
from retnet.training.step import StepResult, read_steps, train_step
from retnet.training.unread import UnreadSteps
from tests.retnet.training.looks import Looks
from tests.retnet.training.small_model import Output, SmallModel, make_model
from tests.retnet.training.workers import DTYPES, LAYOUTS, RATE, main, rows_of, start

KINDS = ("nan loss", "infinite gradient", "loss spike", "norm spike")
BAD = 0  # a token that no row of `global_batch` holds
CONFIG = StabilityConfig(window=8, spike=20.0)


class Faulty(SmallModel):
    """Of the `kind` named where a row begins with the token BAD."""

    kind = ""

    def forward(self, input_ids: Tensor, *args: Tensor, **kwargs: Any) -> Output:
        """As the model's, and the fault."""
        loss = super().forward(input_ids, *args, **kwargs).loss
        if not bool((input_ids[:, 0] == BAD).any()):
            return Output(loss)
        weight = self.layers[0].weight.float()
        nothing = (weight - weight.detach()).sum()  # its value is zero, its slope one
        faults = {
            "nan loss": lambda: loss + float("nan"),
            "infinite gradient": lambda: loss + (nothing**2).sqrt(),
            "loss spike": lambda: loss + 100.0,
            "norm spike": lambda: loss + 1e6 * nothing,
        }
        return Output(faults[self.kind]())


def numbers(engine: Any) -> dict[str, Tensor]:
    """All that this rank owns, copied: masters, moments and Adam's counter."""
    found = {piece.key: piece.tensor.clone() for piece in pieces(engine)}
    return found | {"counter": torch.tensor(counter(engine))}


def take(
    engine: Any, stability: Stability, steps: list[int], spoil: int | None = None
) -> list[StepResult]:
    """These steps, read at once; `spoil`: the one whose second row is the last rank's bad one."""
    queued = []
    for step in steps:
        rows = rows_of(engine, step, BAD if step == spoil else None)
        rate = RATE / (step + 1)
        queued.append(
            train_step(engine, rows, learning_rate=rate, seed=5, step=step, stability=stability)
        )
    return read_steps(engine, queued)


def refused(folder: Path) -> dict[Any, Any]:
    """Three good steps, a bad one of each kind, a good one; and the same without the bad ones."""
    found = {}
    ways = [(*layout, Update.fused) for layout in LAYOUTS]
    ways += [(stage, False, Update.stock) for stage in (0, 1, 2)]
    for dtype in DTYPES:
        for stage, offload, update in ways:
            ends = []
            for kinds in (KINDS, ()):
                engine = start(make_model(Faulty), stage, offload, dtype, 2, update)
                stability = Stability(CONFIG, engine.device, {})
                results = take(engine, stability, [0, 1, 2])
                seen = [numbers(engine)]
                for kind in kinds:
                    Faulty.kind = kind
                    results += take(engine, stability, [3], spoil=3)
                    seen.append(numbers(engine))
                results += take(engine, stability, [4])
                ends.append((results, seen, numbers(engine), gather_weights(engine)))
                engine.destroy()
            found[dtype.name, stage, offload, update.name] = ends
    return found


def unwatched(folder: Path) -> dict[Any, list[str]]:
    """Where the host looks at a tensor while a judged step is queued, the update being fused, with
    a look at its layers."""
    found = {}
    for stage in (0, 1, 2):
        engine = start(make_model(), stage, False, DTYPES[1], 2)
        stability = Stability(CONFIG, engine.device, {})
        take(engine, stability, [0, 1, 2])
        with Looks() as looks:
            rows = rows_of(engine, 3)
            how = {"learning_rate": 0.1, "seed": 5, "step": 3, "stability": stability}
            train_step(engine, rows, **how, norms=True)
        found[stage] = looks.found
        engine.destroy()
    return found


class Slow(SmallModel):
    """Takes a tenth of a second on the second rank."""

    def forward(self, *args: Tensor, **kwargs: Any) -> Output:
        """As the model's."""
        time.sleep(0.1 * dist.get_rank())
        return super().forward(*args, **kwargs)


def slow_rank(folder: Path) -> dict[str, Any]:
    """What is logged and told of four steps, each looked at, where the second rank is slow."""
    engine, said = start(make_model(Slow), 1, False, DTYPES[0], 1), io.StringIO()
    off = LoggingConfig(wandb=WandbMode.off)
    how = {"console": said, "total_steps": 9, "run_name": "run", "resolved_config": {}}
    folder = folder / str(dist.get_rank())  # each rank writes what it would tell
    metrics = Metrics(folder, off, **how, rank=0)
    state, values = TrainState(), []
    unread = UnreadSteps(engine, metrics, StabilityConfig(mode=Mode.off))
    unread.begin(state)
    for step in range(4):
        rows = rows_of(engine, step)
        unread.add(train_step(engine, rows, learning_rate=0.1, seed=5, step=step), state)
        unread.read(state)
        values.append(unread.times(step + 1))
    metrics.close()
    events = read_lines(folder / "events.jsonl")
    return {"values": values, "events": events, "said": said.getvalue()}


if __name__ == "__main__":
    main(globals())
