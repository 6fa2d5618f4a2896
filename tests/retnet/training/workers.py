"""What one rank does in the distributed tests: real engines over gloo, no assertions.

Each scenario does the work, returns plain values for the test to judge, and runs through many
engines, because starting a process costs more than all of them.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

import retnet
from retnet.kernels import KernelsConfig, select_kernels
from retnet.training.checkpoint import load_checkpoint
from retnet.training.engine import EngineConfig, Precision, gather_weights, start_engine
from retnet.training.evaluate import evaluate
from retnet.training.optimizer import OptimizerConfig, Update
from retnet.training.saver import CheckpointConfig, Saver
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, StepResult, read_steps, train_step
from tests.retnet.training.looks import Looks
from tests.retnet.training.small_model import (
    Skipping,
    Spoiled,
    global_batch,
    make_model,
    share,
)

ROWS = 8
RATE = 1e-2
LAYOUTS = [(0, False), (1, False), (2, False), (3, False), (2, True)]  # stage, offload
DTYPES = [Precision.float32, Precision.bfloat16]
ZERO3 = {"train_batch_size": ROWS, "zero_optimization": {"stage": 3}}
OPTIMIZER = OptimizerConfig(learning_rate=RATE, weight_decay=0.1, gradient_clipping=0.5)


def start(
    module: torch.nn.Module,
    stage: int,
    offload: bool,
    dtype: Precision,
    accumulation: int,
    update: Update = Update.fused,
    rows: int = ROWS,
) -> deepspeed.DeepSpeedEngine:
    """An engine over `rows` rows a step."""
    return start_engine(
        module,
        replace(OPTIMIZER, update=update),
        EngineConfig(stage=stage, dtype=dtype, offload_optimizer=offload),
        global_batch_size=rows,
        micro_batch_size=rows // dist.get_world_size() // accumulation,
        device=torch.device("cpu"),
    )


def rows_of(
    engine: deepspeed.DeepSpeedEngine, step: int, spoil: int | None = None
) -> list[dict[str, Tensor]]:
    """This rank's micro-batches of a step; `spoil` replaces the first token of the second row."""
    batch = global_batch(step, ROWS)
    if spoil is not None:
        batch["input_ids"][1, 0] = spoil
    micro = engine.train_micro_batch_size_per_gpu()
    return share(batch, dist.get_rank(), dist.get_world_size(), micro)


def take_steps(
    engine: deepspeed.DeepSpeedEngine, first: int, last: int, spoil: int | None = None
) -> list[StepResult]:
    """Steps `first` to `last` - 1, read at the end or where one was skipped; `spoil` replaces, in
    the first of them, the first token of the second row: the last rank's where there are two."""
    unread, results = [], []
    for step in range(first, last):
        mine = rows_of(engine, step, spoil if step == first else None)
        unread.append(train_step(engine, mine, learning_rate=RATE / (step + 1), seed=5, step=step))
        if unread[-1].skipped or step == last - 1:
            results += read_steps(engine, unread)
            unread.clear()
    return results


def moments(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """This rank's optimizer state, copied: means, mean squares and counters."""
    states = getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()
    return [value.clone() for state in states for _, value in sorted(state.items())]


def curves(folder: Path) -> dict[Any, Any]:
    """Six steps and an evaluation in every layout, dtype and accumulation."""
    found = {}
    for dtype in DTYPES:
        for stage, offload in LAYOUTS:
            for accumulation in (1, 2):
                engine = start(make_model(), stage, offload, dtype, accumulation)
                results = take_steps(engine, 0, 6)
                mine = share(global_batch(99, 4), dist.get_rank(), dist.get_world_size(), 1)
                found[dtype.name, stage, offload, accumulation] = {
                    "results": results,
                    "evaluation": evaluate(engine, mine),
                    "weights": gather_weights(engine),
                    "dtypes": {str(value.dtype) for value in engine.module.parameters()},
                    "buffer": engine.module.scale.item(),
                }
                engine.destroy()
    return found


def updates(folder: Path) -> dict[Any, Any]:
    """Four steps by either update, a checkpoint, two more by either from it; layers come and go."""
    found = {}
    for dtype in DTYPES:
        for stage, accumulation in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)):
            for update in Update:
                engine = start(make_model(Skipping), stage, False, dtype, accumulation, update)
                key = (dtype.name, stage, accumulation, update.name)
                found[key] = [take_steps(engine, 0, 4), gather_weights(engine), moments(engine)]
                save(engine, TrainState(step=4), folder / str(key))
                with Looks() as looks:
                    train_step(engine, rows_of(engine, 4), learning_rate=0.1, seed=5, step=4)
                found[*key, "looks"] = looks.found
                engine.destroy()
            if accumulation == 2:
                for saved, update in ((Update.stock, Update.fused), (Update.fused, Update.stock)):
                    engine = start(make_model(Skipping), stage, False, dtype, accumulation, update)
                    load_checkpoint(engine, folder / str((*key[:3], saved.name)))
                    now = [take_steps(engine, 4, 6), gather_weights(engine), moments(engine)]
                    found[*key[:3], f"{saved.name}, {update.name}"] = now
                    engine.destroy()
    return found


def ways(dtype: Precision) -> list[tuple[int, bool, Update]]:
    """Stage, offload and update. In float32 those alone that have no masters beside the module,
    and one that has."""
    if dtype is Precision.float32:
        return [(0, False, Update.fused), (0, False, Update.stock), (3, False, Update.fused)]
    stock = [(stage, False, Update.stock) for stage in (0, 1, 2)]
    return [(*layout, Update.fused) for layout in LAYOUTS] + stock


def bad_steps(folder: Path) -> dict[Any, Any]:
    """A good step, one that the last rank spoils (0 its gradient, 1 its loss), two good ones."""
    found = {}
    for dtype in DTYPES:
        for stage, offload, update in ways(dtype):
            for spoil in (0, 1):
                engine = start(make_model(Spoiled), stage, offload, dtype, 2, update)
                take_steps(engine, 0, 1)
                before = gather_weights(engine), *moments(engine)
                message = None
                try:
                    take_steps(engine, 11, 14, spoil=spoil)
                except NonFiniteError as error:
                    message = str(error)
                found[dtype.name, stage, offload, update.name, spoil] = {
                    "message": message,
                    "before": before,
                    "after": (gather_weights(engine), *moments(engine)),
                }
                engine.destroy()
    return found


def save(engine: deepspeed.DeepSpeedEngine, state: TrainState, folder: Path) -> None:
    """A checkpoint in `folder`, and its end waited for."""
    Saver(engine, folder, CheckpointConfig(), {}, patience=60).save(state, {}, wait=True)


def evaluated(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Four steps with dropout, with and without evaluations in between; and the score of a fresh
    NucleusX of the config fields given."""
    found = {}
    for stage, offload in LAYOUTS:
        for often in (False, True):
            engine = start(make_model(dropout=0.1), stage, offload, Precision.float32, 2)
            results, same_numbers = [], True
            for step in range(4):
                if often:
                    mine = share(global_batch(99, 4), dist.get_rank(), dist.get_world_size(), 2)
                    before = torch.get_rng_state()
                    evaluate(engine, mine)
                    same_numbers &= torch.equal(before, torch.get_rng_state())
                results.extend(take_steps(engine, step, step + 1))
            found[stage, offload, often] = {
                "results": results,
                "weights": gather_weights(engine),
                "training": engine.module.training,
                "same_numbers": same_numbers,
            }
            engine.destroy()
    torch.manual_seed(0)
    model = retnet.NucleusXForCausalLM(retnet.NucleusXConfig(**fields))
    engine = start(model, 2, False, Precision.float32, 1)
    mine = share(global_batch(99, 4), dist.get_rank(), dist.get_world_size(), 1)
    return {"layouts": found, "score": evaluate(engine, mine)}


def built_in_shards(folder: Path, models: dict[str, list[Any]]) -> dict[str, Any]:
    """Models (class, config fields, dtype, whether its projections are fused) built inside
    `deepspeed.zero.Init`: how many numbers of its parameters a rank then held, the gathered
    weights, and whether the head is the embedding."""
    found = {}
    for variant, (kind, fields, dtype, fused) in models.items():
        kernels = select_kernels(KernelsConfig(fused_projections=fused))
        model_class = getattr(retnet, kind)
        config = ZERO3 | {"bf16": {"enabled": dtype == "bfloat16"}}
        torch.manual_seed(0)
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = model_class(model_class.config_class(**fields), kernels)
        held = sum(parameter.numel() for parameter in model.parameters())
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        head = getattr(model, "lm_head", None)
        tied = head is not None and head.weight is model.model.embed_tokens.weight
        found[variant] = {"held": held, "weights": weights, "tied": tied}
    return found


def main(scenarios: dict[str, Any]) -> None:
    """Joins the group, runs the one of `scenarios` that is named on the command line, stores what
    it returns."""
    name, folder, arguments = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects at each start of an engine: seconds over what imports made
    dist.init_process_group("gloo")
    result = scenarios[name](folder, **arguments)
    torch.save(result, folder / f"{name}-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(globals())
