"""What one rank does in the tests of checkpoints that are made in one layout and loaded in another:
it belongs to `workers.py`, like which it asserts nothing."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.checkpoint import load_checkpoint
from retnet.training.engine import Precision
from retnet.training.evaluate import evaluate
from retnet.training.manifest import read_manifest
from retnet.training.pieces import buffers, counter, pieces, shapes
from retnet.training.restore import restore
from retnet.training.state import TrainState
from retnet.training.step import StepResult, read_steps, train_step
from tests.retnet.training.small_model import SmallModel, global_batch, make_model, share
from tests.retnet.training.workers import (
    DTYPES,
    LAYOUTS,
    OPTIMIZER,
    RATE,
    main,
    rows_of,
    save,
    start,
    take_steps,
)

EVERY_LAYOUT = [*LAYOUTS, (1, True), (3, True)]
Layout = tuple[int, bool]


def everything(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """Each weight, moment and buffer, flat, put together from the ranks' pieces in the order of
    their starts, and the counter; collective."""
    mine = [(f"{p.kind}/{p.name}", p.start, p.tensor.clone()) for p in pieces(engine)]
    dist.all_gather_object(parts := [mine] * dist.get_world_size(), mine)
    found: dict[str, list[Tensor]] = {}
    for what, _, tensor in sorted((p for part in parts for p in part), key=lambda p: p[:2]):
        found.setdefault(what, []).append(tensor)
    return {
        "counter": torch.tensor(counter(engine)),
        **{what: torch.cat(tensors) for what, tensors in found.items()},
        **{name: buffer.clone() for name, buffer in buffers(engine).items()},
    }


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of what is not the same, bit by bit."""
    return [
        name
        for name in {**one, **other}
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def watched_steps(
    engine: deepspeed.DeepSpeedEngine, first: int, last: int
) -> tuple[list[StepResult], list[dict[str, float]]]:
    """As `take_steps`, with a look at the norms of the layers in each step."""
    queued = [
        train_step(
            engine,
            rows_of(engine, step),
            learning_rate=RATE / (step + 1),
            seed=5,
            step=step,
            norms=True,
        )
        for step in range(first, last)
    ]
    return read_steps(engine, queued), [step.norms.read() for step in queued]


def makers(dtype: Precision, layout: Layout) -> list[Layout]:
    """Whose checkpoints a layout reads: in float32 everybody's, in bfloat16, where nothing that is
    saved is rounded, those of the next one and its own."""
    others = [other for other in EVERY_LAYOUT if other != layout]
    following = EVERY_LAYOUT[(EVERY_LAYOUT.index(layout) + 1) % len(EVERY_LAYOUT)]
    return [*(others if dtype is Precision.float32 else [following]), layout]


def resumed(folder: Path) -> dict[Any, Any]:
    """In every layout three steps, a checkpoint and three more; then in each layout a new engine
    loads what `makers` of it saved, its own last, and takes three steps from it, watched. With
    dropout."""
    state = TrainState(step=3, position=24, tokens=240, data_fingerprint="f")
    mine = share(global_batch(99, 4), dist.get_rank(), dist.get_world_size(), 1)
    found: dict[Any, Any] = {}
    for dtype in DTYPES:
        for layout in EVERY_LAYOUT:
            engine = start(make_model(dropout=0.1), *layout, dtype, 2)
            take_steps(engine, 0, 3)
            save(engine, state, folder / f"{dtype.name}-{layout}")
            found[dtype.name, layout] = seen = {
                "places": [(p.kind, p.name, p.start, p.tensor.numel()) for p in pieces(engine)],
                "shapes": shapes(engine),
                "saved": everything(engine),
                "evaluation": evaluate(engine, mine).loss,
                "loads": {},
            }
            seen["straight"] = take_steps(engine, 3, 6), everything(engine)
            engine.destroy()
        for layout in EVERY_LAYOUT:
            torch.manual_seed(12345)
            engine = start(SmallModel(dropout=0.1), *layout, dtype, 2)
            engine.optimizer.param_groups[0]["weight_decay"] = 0.7
            seen = found[dtype.name, layout]
            for made in makers(dtype, layout):
                loaded = load_checkpoint(engine, folder / f"{dtype.name}-{made}")
                seen["loads"][made] = {
                    "differing": differing(everything(engine), found[dtype.name, made]["saved"]),
                    "evaluation": evaluate(engine, mine).loss,
                    "stood": loaded is not None and loaded.state == state,
                }
            seen["decays"] = [group["weight_decay"] for group in engine.optimizer.param_groups]
            engine.optimizer.param_groups[0]["weight_decay"] = OPTIMIZER.weight_decay
            seen["again"], seen["norms"] = watched_steps(engine, 3, 6)
            seen["again"] = seen["again"], everything(engine)
            engine.destroy()
    torch.save({key: seen["saved"] for key, seen in found.items()}, folder / "saved.pt")
    return found


def elastic(folder: Path, made: str, dtype: str, every: int) -> dict[str, dict[Any, Any]]:
    """What differs where layouts, each one after so many, load what the next one saved in `resumed`
    in this dtype, on another number of ranks and in the other dtype, with another shape of the
    batch; beside it what `refused` finds."""
    saved = torch.load(Path(made) / "saved.pt", weights_only=True)
    other = next(each for each in DTYPES if each.name != dtype)
    found: dict[Any, Any] = {}
    pairs = list(zip([EVERY_LAYOUT[-1], *EVERY_LAYOUT], EVERY_LAYOUT, strict=False))
    for here, layout in pairs[::every]:
        engine = start(make_model(), *here, other, 1, rows=12)
        load_checkpoint(engine, Path(made) / f"{dtype}-{layout}")
        found[layout] = differing(everything(engine), saved[dtype, layout])
        engine.destroy()
    return {"elastic": found, "refused": refused(made) if dist.get_world_size() == 1 else {}}


def refused(made: str) -> dict[str, tuple[str, list[str]]]:
    """The errors, and what has moved, where a checkpoint is of a model with one weight less and
    another of another shape, and where one of its files is not there."""
    path = next(Path(made).glob("float32-*/step-00000003"))
    manifest = read_manifest(path)
    found = {}
    for case in ("other model", "less"):
        module = make_model()
        if case == "other model":
            module.layers.append(torch.nn.Linear(2, 2))
            module.norms[0] = torch.nn.LayerNorm(1)
        else:
            manifest["files"].popitem()
        engine = start(module, 2, False, DTYPES[0], 1)
        before = everything(engine)
        try:
            restore(engine, path, manifest)
        except (ValueError, RuntimeError) as error:
            found[case] = f"{type(error).__name__}: {error}", differing(before, everything(engine))
        engine.destroy()
    return found


if __name__ == "__main__":
    main(globals())
