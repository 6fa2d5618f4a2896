"""When a module's blocks are compiled, and how: in place, before the engine starts, once for a run.

Compilation pays where a run is long: it costs seconds to minutes and no weight changes by it beyond
rounding. What is compiled is kept on the disk and found again by the next run. Not here: which
operators run.
"""

import os
import time
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Work of one device after which compiling has paid, in FLOPs: a minute or two of a good step. A CPU
# compiles more slowly and gains less.
WORTH_IT = {"cuda": 1e16, "cpu": 5e14}


class Compile(Enum):
    """Whether blocks are compiled. Lower case, because that is how YAML says it."""

    auto = "auto"
    on = "on"
    off = "off"


def is_worth_compiling(mode: Compile, stage: int, device: torch.device, flops: float) -> bool:
    """Whether to compile for a run with so many FLOPs of this device to go.

    ZeRO-3 fetches weights in hooks that would break every block's graph, so there auto says no.
    """
    if mode is Compile.auto:
        return stage < 3 and flops > WORTH_IT.get(device.type, float("inf"))
    return mode is Compile.on


def compile_blocks(blocks: Iterable[nn.Module], cache: Path, backend: str = "inductor") -> None:
    """Has each block compiled, in place, when it first runs: one graph a block, for the shapes it
    then sees. Equal blocks share a graph. `cache`: the folder in which later runs find it;
    `backend`: torch.compile's."""
    # torch's own default is in the machine's temporary folder, and is in this variable as soon as
    # anything has asked for it; a folder that the user named stays.
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[CACHE_VARIABLE] = str(cache.absolute())
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def rehearse(module: nn.Module, batch: dict[str, Tensor], scoring: dict[str, Any]) -> float:
    """One forward and backward pass, and one as in evaluation (with the arguments `scoring` too),
    so that all is compiled before the run's first step. No gradient, weight, mode or random number
    is left changed. Returns the seconds that it took."""
    started = time.perf_counter()
    device = next(module.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    one = torch.ones((), device=device)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    was_training = module.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.train()
        loss = module(**batch, num_items_in_batch=one).loss
        torch.autograd.grad(loss, weights, allow_unused=True)
        module.eval()
        with torch.no_grad():
            module(**batch, num_items_in_batch=one, **scoring)
    module.train(was_training)
    return time.perf_counter() - started
