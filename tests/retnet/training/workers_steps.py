"""What one rank does in the tests of bad steps: real engines over gloo, no assertions."""

import io
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.engine import Precision, gather_weights
from retnet.training.housekeeping import checkpoints
from retnet.training.lines import read_lines
from retnet.training.metrics import Metrics
from retnet.training.pieces import counter, pieces
from retnet.training.rollback import forget_later, go_back
from retnet.training.saver import CheckpointConfig, Saver
from retnet.training.sinks import LoggingConfig, WandbMode
from retnet.training.stability import Mode, Stability, StabilityConfig
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, StepResult, read_steps, train_step
from retnet.training.unread import UnreadSteps
from tests.retnet.training.looks import Looks
from tests.retnet.training.small_model import Output, SmallModel, make_model
from tests.retnet.training.workers import (
    DTYPES,
    RATE,
    main,
    rows_of,
    start,
    take_steps,
    ways,
)

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


def refused(folder: Path) -> dict[str, dict[Any, Any]]:
    """Three good steps, a bad one of each kind, a good one; and the same without the bad ones.
    Beside it, what `unwatched` finds."""
    found = {}
    for dtype in DTYPES:
        for stage, offload, update in ways(dtype):
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
    return {"steps": found, "looks": unwatched()}


def unwatched() -> dict[Any, list[str]]:
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


def rolled_back(folder: Path) -> dict[str, Any]:
    """A run that has checkpoints of the steps 2, 4 and 6, and goes back from step 7 again and
    again: for strikes at different steps, which of them it found, and what that left of the run's
    state and weights; and what is there once later ones are forgotten."""
    engine = start(make_model(), 1, False, Precision.float32, 1)
    config = StabilityConfig(mode=Mode.rollback, max_rollbacks=3)
    said = {"console": io.StringIO(), "total_steps": 9, "run_name": "run", "resolved_config": {}}
    metrics = Metrics(folder, LoggingConfig(wandb=WandbMode.off), rank=0, **said)
    place, weights = folder / "checkpoints", {}
    writer = Saver(engine, place, CheckpointConfig(keep_last=0), {}, patience=60)
    for step in (2, 4, 6):
        take_steps(engine, step - 2, step)
        recent = {"losses": [float(step)], "norms": [1.0]}
        state = TrainState(step=step, position=8 * step, tokens=10 * step, recent=recent)
        writer.save(state, {}, wait=True)
        weights[step] = gather_weights(engine)
    take_steps(engine, 6, 7)
    found: dict[str, Any] = {}
    cases = {"kept": ([4, 5, 6], 0), "first not kept": ([1, 5, 6], 1), "none": ([0, 1], 2)}
    for name, (strikes, rollbacks) in (cases | {"too often": ([4, 5, 6], 3)}).items():
        state = TrainState(step=7, position=56, tokens=70, rollbacks=rollbacks, strikes=strikes)
        before, error = gather_weights(engine), ""
        try:
            go_back(engine, place, state, config, metrics)
        except NonFiniteError as problem:
            error = str(problem)
        now = gather_weights(engine)
        is_of = [step for step in weights if _same(weights[step], now)]
        found[name] = {"state": state, "error": error, "weights of": is_of}
        found[name]["moved"] = not _same(before, now)
    forget_later(place, 4)
    found["left"] = [path.name for path in checkpoints(place)]
    return found


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


if __name__ == "__main__":
    main(globals())
