"""What is done to a module's blocks before the engine starts: what they keep for their backward
pass, and whether they are compiled. It decides by the run's length and the device's memory where
engine.* leaves it open; how each is done stands in recompute.py and compile.py.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retnet.training.compile import (
    choose_compilation,
    compile_blocks,
    finds_compiler,
    is_worth_compiling,
)
from retnet.training.engine import EngineConfig, resolve_dtype
from retnet.training.recompute import (
    checkpoint_activations,
    choose_activation_checkpointing,
    device_memory,
    state_bytes,
)


def prepare_blocks(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    config: EngineConfig,
    *,
    skeleton: Callable[[], nn.Module],
    batch: dict[str, Tensor],
    flops: float,
    cache: Path,
    device: torch.device,
    local_size: int,
) -> tuple[bool, str]:
    """Prepares `module`, a transformers model with these `blocks`, for a run; collective.

    skeleton builds the module again (on the meta device, to count what it keeps); batch: a
    micro-batch; flops: of the whole run on all devices; cache: the folder for what is compiled;
    local_size: processes on this machine. Returns whether the blocks are compiled when they first
    run, and both decisions in words.
    """
    world_size = dist.get_world_size()
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters())  # of ZeRO-3
    dtype = resolve_dtype(config.dtype, device)
    wanted = is_worth_compiling(config.compile, config.stage, device, flops / world_size)
    # What the least of the machines has: ranks that chose differently would wait for each other.
    least = torch.tensor(
        [float(wanted and finds_compiler()), device_memory(device, local_size)],
        dtype=torch.float64,
        device=device,
    )
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    compiler, memory = least.tolist()
    compiles, words = choose_compilation(config.compile, wanted, bool(compiler))
    kept = choose_activation_checkpointing(
        config.activation_checkpointing,
        lambda: skeleton().to(dtype),
        batch,
        state_bytes(parameters, dtype, config.stage, world_size, config.offload_optimizer),
        memory,
        compiles,
    )
    checkpoint_activations(module, kept)
    if compiles:
        compile_blocks(blocks, cache)
    return compiles, f"{words}, activation checkpointing {kept.value}"
