"""How large the gradient is in each layer, and what comes out of each: where a run that goes wrong
begins to. Queued like the step that it looks at, without a wait for the device; the gradient is the
one that the update takes, summed over micro-batches and ranks, before clipping.

What it relies on inside DeepSpeed is where `pieces.py` finds the weights, and for their gradients
what `RELIED_ON` lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retnet.training.fused_step import CPU_PIECE
from retnet.training.pieces import places
from retnet.training.undisturbed import undisturbed

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

RELIED_ON = {
    "DeepSpeedZeroOptimizer": ("averaged_gradients", "cpu_offload"),
    "BF16_Optimizer": ("fp32_groups_gradient_flat_partition",),
    "DeepSpeedZeroOptimizer_Stage3": ("averaged_gradients", "offload_optimizer"),
}


class Norms(NamedTuple):
    """By group, in the order of `groups`: scalars in one tensor on the device."""

    gradient: dict[str, int]
    """The place of each group in `values`: its L2 norm."""
    activation: dict[str, int]
    """The place of each group in `values`: the root of its mean square over rows and ranks."""
    values: Tensor
    """Float64, one dimension."""

    def read(self) -> dict[str, float]:
        """`grad_norm/<group>` and `activation_rms/<group>`; waits for the device."""
        numbers = self.values.tolist()
        kinds = {"grad_norm": self.gradient, "activation_rms": self.activation}
        return {
            f"{kind}/{group}": numbers[place]
            for kind, groups in kinds.items()
            for group, place in groups.items()
        }


def group_of(name: str) -> str:
    """The part of the model that a weight is told under: layer.00 and on, embedding, head, norm;
    other where its name says none of them."""
    if layer := re.search(r"(?:^|\.)layers\.(\d+)\.", name):
        return f"layer.{int(layer[1]):02d}"
    words = {"embed_tokens": "embedding", "embedding.": "embedding", "head": "head", "norm": "norm"}
    return next((group for word, group in words.items() if word in f"{name}."), "other")


@torch.no_grad()
def gradient_squares(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """By group the sum of squares of this rank's share of the gradient: between the last backward
    pass and the update. Float64 scalars on the device; a group has a zero where nothing of it lies
    here."""
    _settle(engine)
    gradients = _gradients(engine)
    shares: dict[str, list[Tensor]] = {
        group_of(name): [] for name, weight in engine.module.named_parameters()
    }
    for name, _, owner, offset, count in places(engine, engine.zero_optimization_stage()):
        shares[group_of(name)] += _between(gradients[id(owner)], offset, offset + count)
    zero = torch.zeros((), dtype=torch.float64, device=engine.device)
    scale = float(getattr(engine.optimizer, "loss_scale", 1.0))
    squares = {}
    for group, parts in sorted(shares.items()):
        # In pieces, because a float32 sum over a long tensor of a CPU loses digits.
        pieces = [
            piece
            for part in parts
            for piece in (part.split(CPU_PIECE) if part.device.type == "cpu" else (part,))
        ]
        total = torch.stack(torch._foreach_norm(pieces)).double().square().sum() if pieces else zero
        squares[group] = total.to(engine.device) / scale**2
    return squares


def activation_squares(engine: DeepSpeedEngine, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """By group the mean square of what comes out of the embedding and of each layer, for the first
    row of a micro-batch and without dropout; float64 scalars on the device. {} where the module
    has no `layers`. Collective at stage 3, and leaves no trace."""
    layers = next(
        (m for n, m in engine.module.named_modules() if n.rpartition(".")[2] == "layers"), None
    )
    if not isinstance(layers, nn.ModuleList) or not layers:
        return {}
    squares: dict[str, Tensor] = {}

    def note(group: str, value: Any) -> None:
        hidden = value[0] if isinstance(value, tuple) else value
        squares[group] = hidden.detach().float().square().mean().double()

    first = layers[0].register_forward_pre_hook(lambda _, given: note("embedding", given))
    hooks = [
        layer.register_forward_hook(lambda *call, group=f"layer.{index:02d}": note(group, call[-1]))
        for index, layer in enumerate(layers)
    ]
    try:
        with undisturbed(engine):
            row = {name: value[:1] for name, value in batch.items()}
            engine(**row, num_items_in_batch=torch.ones((), device=engine.device))
    finally:
        for hook in (first, *hooks):
            hook.remove()
    return squares


def norms_of_layers(gradient: dict[str, Tensor], activation: dict[str, Tensor]) -> Norms:
    """Over all ranks, in one message; collective."""
    values = torch.stack([*gradient.values(), *activation.values()])
    values[len(gradient) :] /= dist.get_world_size()
    dist.all_reduce(values)
    places = {group: place for place, group in enumerate(gradient)}
    after = {group: place for place, group in enumerate(activation, start=len(gradient))}
    return Norms(places, after, values.sqrt())


def _gradients(engine: DeepSpeedEngine) -> dict[int, list[Tensor]]:
    """By the id of the tensor that the optimizer steps: this rank's share of its gradient, one
    after the other over its elements."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    kind = type(zero).__name__
    missing = [name for name in RELIED_ON.get(kind, ()) if not hasattr(zero, name)]
    if (stage and kind not in RELIED_ON) or missing:
        raise RuntimeError(
            f"this DeepSpeed's optimizer is {kind}{''.join(f', without {n}' for n in missing)}; "
            "logging.norms_every does not know it: set it to 0, or install the DeepSpeed that "
            "pyproject.toml names."
        )
    if stage == 0:
        return {id(master): [master.grad] for master in zero.masters().values()}
    owners = (
        zero.fp32_partitioned_groups_flat
        if stage == 3
        else [group["params"][0] for group in zero.optimizer.param_groups]
    )
    found = {}
    for index, owner in enumerate(owners):
        if kind == "BF16_Optimizer":
            given = [zero.fp32_groups_gradient_flat_partition[index]]
        elif _offloads(engine):
            given = [owner.grad]
        else:
            given = zero.averaged_gradients[index]
            flat = getattr(given, "flat_partition", None)
            given = [flat] if flat is not None else given
        found[id(owner)] = [tensor.reshape(-1) for tensor in given if tensor is not None]
    return found


def _between(tensors: list[Tensor], start: int, stop: int) -> list[Tensor]:
    """The elements from `start` to `stop` of tensors that stand one after the other."""
    found, begin = [], 0
    for tensor in tensors:
        flat = tensor.reshape(-1)
        first, last = max(start - begin, 0), min(stop - begin, flat.numel())
        if first < last:
            found.append(flat[first:last])
        begin += flat.numel()
    return found


def _offloads(engine: DeepSpeedEngine) -> bool:
    zero = engine.optimizer
    return bool(getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False))


def _settle(engine: DeepSpeedEngine) -> None:
    """Offloaded gradients are copied to the host behind the back of the queue."""
    if engine.device.type == "cuda" and _offloads(engine):
        torch.cuda.synchronize(engine.device)
