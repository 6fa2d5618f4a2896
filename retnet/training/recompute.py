"""Activation checkpointing: what of a forward pass is kept for the backward pass, what made again.

The memory that a step takes decides where nobody said: activations are counted, not estimated, by a
forward pass on the meta device, which has shapes and no numbers. Not here: checkpoints on the disk.
"""

import os
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts


class ActivationCheckpointing(Enum):
    """What a block keeps for its backward pass."""

    auto = "auto"
    none = "none"
    selective = "selective"
    block = "block"


# The products with weights are most of a block's work and little of its memory. All else is made
# again from them: norms, rotation, gates, and retention's own, smaller products.
KEPT = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
# What may be planned for: allocators, messages between ranks and libraries take some.
SHARE_OF_MEMORY = 0.8
# Of what plain torch keeps of a block of retnet_base in bfloat16, the compiler keeps 27 of 40 kB a
# token: it makes again what costs nothing.
KEPT_COMPILED = 2 / 3


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(module: nn.Module, kind: ActivationCheckpointing) -> None:
    """Has every block of a transformers model, in training, keep as much as `kind` says: all of it
    (none), the outputs of its linear layers (selective), or its input alone (block; a third more
    work). Results do not change. Before the blocks are compiled."""
    asked: dict[str, Any] = {"use_reentrant": False}
    if kind is ActivationCheckpointing.selective:
        asked["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    if kind in (ActivationCheckpointing.selective, ActivationCheckpointing.block):
        module.activation_checkpointing_enable(activation_checkpointing_kwargs=asked)


def choose_activation_checkpointing(
    asked: ActivationCheckpointing,
    skeleton: Callable[[], nn.Module],
    batch: dict[str, Tensor],
    states: float,
    memory: float,
    compiled: bool,
) -> ActivationCheckpointing:
    """What was asked for; for auto none where all that a step needs is in the plannable share of
    the device's memory, else selective.

    skeleton: builds the module in the dtype it computes in; batch: a micro-batch; states, memory:
    bytes, as `state_bytes` and `device_memory` give them.
    """
    if asked is not ActivationCheckpointing.auto:
        return asked
    rows = max(map(len, batch.values()))
    with torch.device("meta"):
        module = skeleton()
        one, two = (
            activation_bytes(
                module, {name: value[:1].to("meta").repeat(n, 1) for name, value in batch.items()}
            )
            for n in (1, 2)
        )
    activations = one + (rows - 1) * (two - one)  # the head's gradient, say, is there once
    return keep_what_fits(activations, states, memory, compiled)


def keep_what_fits(
    activations: float, states: float, memory: float, compiled: bool
) -> ActivationCheckpointing:
    """What auto stands for where plain torch would keep `activations` bytes of a micro-batch."""
    needed = states + activations * (KEPT_COMPILED if compiled else 1)
    fits = needed <= SHARE_OF_MEMORY * memory
    return ActivationCheckpointing.none if fits else ActivationCheckpointing.selective


def activation_bytes(module: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes that a training forward pass of `module` on `batch` keeps for the backward pass, its
    own weights not counted; both on the meta device."""
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.train()(**batch)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def state_bytes(
    parameters: int, dtype: torch.dtype, stage: int, world_size: int, offload: bool = False
) -> float:
    """Bytes on one device for weights and gradients in `dtype`, and for float32 gradient sums,
    masters and two moments; each split over the ranks from the ZeRO stage that splits it."""
    width = dtype.itemsize
    weights = width / (world_size if stage >= 3 else 1)
    gradients = (width + 4.0) / (world_size if stage >= 2 else 1)
    optimizer = 0.0 if offload else 12.0 / (world_size if stage >= 1 else 1)
    return parameters * (weights + gradients + optimizer)


def device_memory(device: torch.device, processes: int) -> float:
    """Bytes of one process: its GPU's, or its share of the machine's memory among `processes`."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip() != "max":
        memory = min(memory, float(limit.read_text()))
    return memory / processes
