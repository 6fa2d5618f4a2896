"""What of the weights and the optimizer's state lies on this rank, by name, in any ZeRO stage.

A checkpoint is made of these pieces and a run goes on from them; they say nothing of the layout, so
every layout reads every other. Files are not this file's business. What it relies on inside
DeepSpeed is listed once, in `RELIED_ON`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.fused_step import adam_state

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW names them
RELIED_ON = {
    "ReplicatedOptimizer": ("inner", "masters"),  # ours
    # Each weight's `_hp_mapping` says which of its elements lie on this rank, and where.
    "DeepSpeedZeroOptimizer": ("optimizer", "update_lp_params"),
    "BF16_Optimizer": ("optimizer", "update_lp_params"),
    "DeepSpeedZeroOptimizer_Stage3": (
        "optimizer",
        "get_param_id",
        "grad_position",  # by that: the group, the offset in it, the elements with their padding
        "fp32_partitioned_groups_flat",  # by group: this rank's masters
        "fp16_partitioned_groups_flat",  # by group: this rank's share of the module's weights
        "checkpoint_event_prologue",  # shares out every weight that lies whole on this rank
        "checkpoint_event_epilogue",  # gathers those that always lie whole on every rank
    ),
}
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Piece(NamedTuple):
    """Neighboring elements of one weight, or of one of its moments, flattened."""

    name: str
    """The parameter's, as `module.named_parameters()` has it."""
    kind: str
    """master, exp_avg or exp_avg_sq."""
    start: int
    """The first element's place in the whole flat parameter."""
    tensor: Tensor
    """Float32 [n], without padding; the optimizer's own memory, on a GPU or the host."""

    @property
    def key(self) -> str:
        """What it is called in a file."""
        return f"{self.kind}/{self.name}@{self.start}"


def check_engine(engine: DeepSpeedEngine) -> None:
    """RuntimeError where this DeepSpeed has not what we rely on: better now than at a save."""
    zero = engine.optimizer
    kind = type(zero).__name__
    missing = [name for name in RELIED_ON.get(kind, ()) if not hasattr(zero, name)]
    if kind not in RELIED_ON or missing:
        raise RuntimeError(
            f"this DeepSpeed's optimizer is {kind}{''.join(f', without {n}' for n in missing)}; "
            "checkpoints do not know it: install the DeepSpeed that pyproject.toml names."
        )


def pieces(engine: DeepSpeedEngine, *, whole: bool = False) -> Iterator[Piece]:
    """This rank's pieces: together with the other ranks' every element once, in every stage.

    At stage 0 every rank holds everything: its pieces are an even share, or, with `whole`, all.
    Makes the moments where no step was taken yet. Not collective.
    """
    inner = _inner(engine)
    for weight in _stepped(engine):
        adam_state(inner, weight)
    stage = engine.zero_optimization_stage()
    for name, start, owner, offset, count in places(engine, stage, whole):
        if count == 0:
            continue
        moments = inner.state[owner]
        for kind, tensor in (("master", owner), *((kind, moments[kind]) for kind in MOMENTS)):
            yield Piece(name, kind, start, tensor.detach().view(-1).narrow(0, offset, count))


_Place = tuple[str, int, Tensor, int, int]
"""A parameter's name, the first of its elements here, the master tensor that they lie in, the first
one's place in that tensor, and how many there are."""


def places(engine: DeepSpeedEngine, stage: int, whole: bool = False) -> Iterator[_Place]:
    """Where this rank's pieces of the masters lie; some may be empty. Not collective."""
    if stage == 0:
        return _replicated(engine, whole)
    return _partitioned(engine) if stage < 3 else _partitioned_by_weight(engine)


def _replicated(engine: DeepSpeedEngine, whole: bool) -> Iterator[_Place]:
    masters = engine.optimizer.masters()
    total = sum(master.numel() for master in masters.values())
    rank, ranks = dist.get_rank(), dist.get_world_size()
    first, last = (0, total) if whole else (total * rank // ranks, total * (rank + 1) // ranks)
    begin = 0  # of this parameter, where all of them stand in a row
    for name, weight in _trained(engine):
        size = weight.numel()
        start, stop = max(first - begin, 0), min(last - begin, size)
        begin += size
        yield name, start, masters[weight], start, max(stop - start, 0)


def _partitioned(engine: DeepSpeedEngine) -> Iterator[_Place]:
    groups = engine.optimizer.optimizer.param_groups
    for name, weight in _trained(engine):
        mapping = weight._hp_mapping
        if mapping is None:  # all of it is another rank's
            continue
        # Its own `optim_fragment` does not know the moments of an offloaded optimizer.
        owner = groups[mapping.param_group_index]["params"][0]
        here, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
        yield name, mapping.lp_fragment_address.start, owner, here, count


def _partitioned_by_weight(engine: DeepSpeedEngine) -> Iterator[_Place]:
    zero = engine.optimizer
    for name, weight in _trained(engine):
        group, offset, padded = zero.grad_position[zero.get_param_id(weight)]
        start = padded * dist.get_rank()
        count = max(min(padded, weight.ds_numel - start), 0)
        yield name, start, zero.fp32_partitioned_groups_flat[group], offset, count


def counter(engine: DeepSpeedEngine) -> float:
    """The steps that Adam's moments have seen; waits for the device."""
    found = [state["step"] for state in _inner(engine).state.values() if "step" in state]
    values = set(torch.stack(found).tolist()) if found else {0.0}
    assert len(values) == 1, f"the optimizer counts its steps differently: {values}"
    return values.pop()


def set_counter(engine: DeepSpeedEngine, steps: float) -> None:
    """The inverse of `counter`, once there are moments."""
    for state in _inner(engine).state.values():
        state["step"].fill_(steps)


def scaler(engine: DeepSpeedEngine) -> dict[str, Any] | None:
    """Where the loss scale of a float16 run stands; None where nothing is scaled."""
    found = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(found, "dynamic", False):
        return None
    return {name: getattr(found, name) for name in _SCALER}


def set_scaler(engine: DeepSpeedEngine, values: dict[str, Any]) -> None:
    """The inverse of `scaler`, in a float16 run."""
    for name in _SCALER:
        setattr(engine.optimizer.loss_scaler, name, values[name])


def buffers(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """The module's persistent buffers by name; the same on every rank, and in every stage whole."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in engine.module.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def shapes(engine: DeepSpeedEngine) -> dict[str, list[int]]:
    """The whole shape of every weight that is trained and of every persistent buffer, by name."""
    weights = {name: getattr(p, "ds_shape", p.shape) for name, p in _trained(engine)}
    kept = {name: buffer.shape for name, buffer in buffers(engine).items()}
    return {name: list(shape) for name, shape in (weights | kept).items()}


@torch.no_grad()
def spread_masters(engine: DeepSpeedEngine) -> None:
    """Gives the module the weights that its masters now have; collective."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        for weight, master in zero.masters().items():
            if weight is not master:
                weight.copy_(master)
    elif stage < 3:
        zero.update_lp_params()
    else:
        zero.checkpoint_event_prologue()
        masters, weights = zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat
        for weight, master in zip(weights, masters, strict=True):
            weight.data.copy_(master.data)
        zero.checkpoint_event_epilogue()


def _trained(engine: DeepSpeedEngine) -> list[tuple[str, Tensor]]:
    """Tied ones once, under their first name, in the module's order."""
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _inner(engine: DeepSpeedEngine) -> torch.optim.AdamW:
    zero = engine.optimizer
    return zero.inner if engine.zero_optimization_stage() == 0 else zero.optimizer


def _stepped(engine: DeepSpeedEngine) -> list[Tensor]:
    """The float32 tensors that the optimizer steps and keeps the moments of."""
    if engine.zero_optimization_stage() == 3:  # it lends them to the groups, one at a time
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [weight for group in _inner(engine).param_groups for weight in group["params"]]
