"""Weighs real training steps: a process that says how much memory each of them took at its fullest.

    python -m tests.retnet.plan.weigh FOLDER CELL...      CELL: one of CELLS

VmHWM is the kernel's high-water mark of this process, and can be set back. What is freed must go
back to the kernel at once, for which malloc is told to ask it for each larger piece.
"""

import ctypes
import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from retnet.kernels import select_kernels
from retnet.models.build import ModelConfig, build_model
from retnet.training.engine import EngineConfig, Precision, built_in_shards, start_engine
from retnet.training.optimizer import OptimizerConfig
from retnet.training.recompute import ActivationCheckpointing, checkpoint_activations
from retnet.training.step import read_steps, train_step

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MODEL = ModelConfig(
    vocab_size=4096,
    num_layers=3,
    hidden_size=448,
    num_heads=4,
    value_dim=896,
    intermediate_size=896,
    chunk_size=64,
)
TINY = replace(
    MODEL, vocab_size=64, num_layers=1, hidden_size=32, value_dim=32, intermediate_size=32
)
LENGTH = 128


class Cell(NamedTuple):
    """One layout of a step."""

    stage: int
    dtype: str
    keeps: str = "none"
    rows: int = 1
    """Of a micro-batch."""
    micro_batches: int = 1


CELLS = {
    "replicated": Cell(0, "float32", rows=4),
    "zero1": Cell(1, "float32", "block", rows=4),
    "zero1-bfloat16": Cell(1, "bfloat16", "selective", rows=2, micro_batches=2),
    "zero2": Cell(2, "bfloat16", micro_batches=2),
    "zero3": Cell(3, "float32"),
}


def main(folder: Path, names: list[str]) -> None:
    """Writes {cell: bytes} to this rank's file."""
    malloc = ctypes.CDLL(None)
    assert malloc.mallopt(M_MMAP_THRESHOLD, 65_536) and malloc.mallopt(M_TRIM_THRESHOLD, 65_536)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    weighed = {}
    for name in names:
        step(CELLS[name], TINY)  # what is loaded at first use is no part of a step
        weighed[name] = step(CELLS[name], MODEL)
    (folder / f"rank-{rank}.json").write_text(json.dumps(weighed))


def step(cell: Cell, model_config: ModelConfig) -> int:
    """Bytes that two steps took at most, over what the process had before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before = status("VmRSS")
    device, engine_config = torch.device("cpu"), EngineConfig(cell.stage, Precision(cell.dtype))
    with built_in_shards(engine_config, device):
        model = build_model(model_config, select_kernels(), seed=0)
    checkpoint_activations(model, ActivationCheckpointing(cell.keeps))
    engine = start_engine(
        model,
        OptimizerConfig(),
        engine_config,
        global_batch_size=cell.rows * cell.micro_batches * dist.get_world_size(),
        micro_batch_size=cell.rows,
        device=device,
    )
    Path("/proc/self/clear_refs").write_text("5")  # building it is no step
    ids = torch.randint(model_config.vocab_size, (cell.rows, LENGTH))
    batch = [{"input_ids": ids, "shift_labels": ids}] * cell.micro_batches
    for number in range(2):  # the first makes the moments
        read_steps(engine, [train_step(engine, batch, learning_rate=1e-3, seed=0, step=number)])
    most = status("VmHWM") - before
    engine.destroy()
    return most


def status(key: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
