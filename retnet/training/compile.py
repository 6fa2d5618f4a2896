"""When a module's blocks are compiled, and how: in place, before the engine starts, once for a run.

Compilation pays where a run is long: it costs seconds to minutes and no weight changes by it beyond
rounding. What is compiled is kept on the disk and found again by the next run. Not here: which
operators run.
"""

import os
import sysconfig
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Work of one device after which compiling has paid, in FLOPs: two or three minutes of a CPU core's
# steps, which become a third faster for less than a minute of compiling; a minute of a GPU's.
WORTH_IT = {"cuda": 1e16, "cpu": 2e13}


class Compile(Enum):
    """Whether blocks are compiled. Lower case, because that is how YAML says it."""

    auto = "auto"
    on = "on"
    off = "off"


def is_worth_compiling(mode: Compile, stage: int, device: torch.device, flops: float) -> bool:
    """Whether to compile, if that can be, for a run of so many FLOPs of this device.

    ZeRO-3 fetches weights in hooks that would break every block's graph, so there auto says no.
    """
    if mode is Compile.auto:
        return stage < 3 and flops > WORTH_IT.get(device.type, float("inf"))
    return mode is Compile.on


def choose_compilation(mode: Compile, wanted: bool, has_compiler: bool) -> tuple[bool, str]:
    """Whether to compile where that is `wanted`, and that in words.

    Raises:
        ValueError: compiling was asked for and a machine has not what it needs.
    """
    if wanted and not has_compiler:
        if mode is Compile.on:
            raise ValueError(
                "engine.compile is on and a machine of this run has no C++ compiler or no headers "
                "of Python, which torch's compiler needs; install them (g++ and python3-dev), or "
                "set engine.compile to off."
            )
        return False, "layers not compiled (no C++ compiler)"
    return wanted, "layers compiled" if wanted else "layers not compiled"


def finds_compiler() -> bool:
    """Whether torch's compiler finds the C++ compiler and the headers of Python that it needs."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds, which few runs need
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return (Path(sysconfig.get_path("include")) / "Python.h").exists()


def compile_blocks(blocks: Iterable[nn.Module], cache: Path, backend: str = "inductor") -> None:
    """Has each block compiled, in place, when it first runs: one graph a block, for the shapes it
    then sees. Equal blocks share a graph. `cache`: the folder in which later runs find it;
    `backend`: torch.compile's."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch's own default is in the machine's temporary folder, and is in this variable as soon as
    # anything has asked for it; a folder that the user named stays.
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):
        os.environ[CACHE_VARIABLE] = str(cache.absolute())
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def rehearse(module: nn.Module, batch: dict[str, Tensor], scoring: dict[str, Any]) -> None:
    """One forward and backward pass, and one as in evaluation (with the arguments `scoring` too),
    so that all is compiled before the run's first step. No gradient, weight, mode or random number
    is left changed."""
    device = next(module.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    one = torch.ones((), device=device)
    # The first weight is the one that all blocks' backward passes lead to; the gradients of all
    # would be in memory at once, which a step at stage 2 never has.
    first = next(weight for weight in module.parameters() if weight.requires_grad)
    was_training = module.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module.train()
        loss = module(**batch, num_items_in_batch=one).loss
        torch.autograd.grad(loss, first)
        module.eval()
        with torch.no_grad():
            module(**batch, num_items_in_batch=one, **scoring)
    module.train(was_training)
