"""The planned memory is what real steps are seen to take."""

import json
import os
from pathlib import Path

import pytest
import torch

from retnet.kernels import select_kernels
from retnet.models.build import build_model
from retnet.plan.memory import Layout, Load, device_memory_of
from retnet.plan.skeleton import measure_skeleton
from retnet.training.compile import compile_blocks
from retnet.training.engine import EngineConfig
from retnet.training.recompute import (
    ActivationCheckpointing,
    activation_bytes,
    checkpoint_activations,
)
from tests import forked
from tests.retnet.plan.weigh import CELLS, LENGTH, MODEL, TINY


def planned(name: str, ranks: int = 1) -> float:
    """Bytes of a cell's fullest moment, by the plan."""
    cell, engine = CELLS[name], EngineConfig()
    dtype = getattr(torch, cell.dtype)
    skeleton = measure_skeleton(MODEL, True, LENGTH, dtype)
    load = Load(
        rows=cell.rows,
        tokens=cell.rows * LENGTH,
        kept=skeleton.kept[ActivationCheckpointing(cell.keeps)],
        kept_whole=skeleton.kept[ActivationCheckpointing.none],
        vocabulary=MODEL.vocab_size,
        width=MODEL.hidden_size,
        logits_width=dtype.itemsize,
    )
    layout = Layout(
        cell.stage,
        dtype,
        ranks,
        engine.reduce_bucket_size,
        engine.allgather_bucket_size,
        accumulates=cell.micro_batches > 1,
        reserves=False,
    )
    return device_memory_of(skeleton.total, load, layout).total


def weighed(names: list[str], ranks: int, folder: Path) -> dict[str, float]:
    """The bytes that real steps took, on the rank that took most."""
    command = ("-m", "tests.retnet.plan.weigh", str(folder), *names)
    processes = [
        forked.start(
            *command,
            folder=folder,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"},
            merged=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]
    return {name: max(each[name] for each in found) for name in names}


def compare(seen: dict[str, float], ranks: int) -> None:
    ratios = {name: planned(name, ranks) / most for name, most in seen.items()}
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), ratios


def test_the_plan_is_within_15_percent_of_what_real_steps_take(tmp_path):
    """At every stage, in both dtypes, with and without recomputing and accumulating."""
    compare(weighed(list(CELLS), 1, tmp_path), 1)


@pytest.mark.parametrize("policy", ["selective", "block"])
def test_a_compiled_block_keeps_all_that_a_policy_names(policy, tmp_path):
    kept = measure_skeleton(TINY, True, LENGTH, torch.float32).kept
    whole, chosen = (kept[ActivationCheckpointing(name)] for name in ("none", policy))
    load = Load(2, 2 * LENGTH, chosen, whole, TINY.vocab_size, TINY.hidden_size, 4)
    asked = Layout(0, torch.float32, 1, 1, 1, compiled=True)
    planned = device_memory_of(1, load, asked).activations
    torch._dynamo.reset()
    model = build_model(TINY, select_kernels(), seed=0)
    checkpoint_activations(model, ActivationCheckpointing(policy))
    compile_blocks(model.model.layers, tmp_path, backend="aot_eager")
    ids = torch.randint(TINY.vocab_size, (2, LENGTH))
    seen = activation_bytes(model, {"input_ids": ids, "shift_labels": ids})
    assert planned == pytest.approx(seen, rel=0.15)


@pytest.mark.long
@pytest.mark.parametrize("name", list(CELLS))
def test_it_is_so_on_two_ranks(name, tmp_path):
    compare(weighed([name], 2, tmp_path), 2)
