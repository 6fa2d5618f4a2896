"""Which rank's gradient is bad, and of which weight: asked once, of a step that was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def find_bad_gradients(
    engine: DeepSpeedEngine, micro_batches: list[dict[str, Tensor]], num_items: Tensor
) -> str:
    """Says which rank's gradient is bad, by doing the step's backward passes again; collective.

    Once reduced, a gradient no longer tells where it came from, and looking at every gradient of
    every step would cost a wait for each; the run is about to stop, so this may be slow.
    """
    names: list[str] = []

    def watch(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: None if gradient.isfinite().all() else names.append(name)

    hooks = [
        parameter.register_hook(watch(name))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    ]
    for batch in micro_batches:
        engine.backward(engine(**batch, num_items_in_batch=num_items).loss)
    for hook in hooks:
        hook.remove()
    first: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(first, names[0] if names else None)
    bad = [f"that of {name} on rank {rank}" for rank, name in enumerate(first) if name]
    return f" (first {', '.join(bad)})" if bad else " (in the sum over the ranks)"
