"""Our optimizer step inside DeepSpeed's ZeRO 1 and 2: DeepSpeed reduces and shares out gradients
and keeps the state, `fused_step.py` steps, DeepSpeed's all-gather spreads the weights. It decides
nothing and copies little of DeepSpeed's; what it relies on inside is listed once, in `RELIED_ON`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.fused_step import FusedStep, Part

_BOTH = (
    "optimizer",  # the torch.optim.AdamW, one flat float32 partition in each of its groups
    "real_dp_process_group",  # by group: the ranks
    "nccl_start_alignment_factor",  # of the all-gather
    "allgather_bucket_size",
    "overflow",  # what the engine takes for "not applied"; `_global_grad_norm` is its other reading
    "_lazy_init_hp_params_optimizer_state",  # tells each weight where its state is
    "zero_grad",  # the engine calls it after the step
    "step",
)
RELIED_ON = {
    # Stage 2, and stage 1 where the module is float32.
    "DeepSpeedZeroOptimizer": (
        *_BOTH,
        "single_partition_of_fp32_groups",  # the float32 partitions
        "parallel_partitioned_bit16_groups",  # by group and rank: the module's weights, flat
        "bit16_groups_flat",  # by group: all of them
        "averaged_gradients",  # by group: this rank's share of the gradient, in order, or None
        "all_grad_tensors",  # by group: the sums that these were made of
        "micro_step_id",
        "_release_preflattened_grad_buffers",
    ),
    # Stage 1 where the module is bfloat16: every rank sums the whole gradient.
    "BF16_Optimizer": (
        *_BOTH,
        "fp32_groups_flat_partition",  # the float32 partitions
        "bf16_partitioned_groups",  # by group and rank: the module's weights, flat
        "bf16_groups_flat",  # by group: all of them
        "fp32_groups_gradient_flat_partition",  # by group: this rank's share of the sums
        "fp32_groups_gradients_flat",  # by group: all the sums
        "fp32_groups_gradients",  # by group and weight: each one's, flat
        "fp32_groups_has_gradients",  # by group and weight: whether anything was added
        "_update_hp_grad",  # adds a weight's gradient to its sum
        "clear_hp_grads",
        "get_grads_for_reduction",  # the engine asks, once before a step
    ),
}


def install_fused_step(
    zero: Any,
    *,
    gradient_clipping: float,
    reduce_bucket_size: int,
    operator: Callable | None = None,
) -> None:
    """Puts our step into DeepSpeed's optimizer, which is neither in float16 nor offloaded;
    `reduce_bucket_size`: elements of a message, `operator` as in `FusedStep`.

    Raises:
        RuntimeError: this DeepSpeed has not what we rely on.
    """
    kind = type(zero).__name__
    missing = [name for name in RELIED_ON.get(kind, ()) if not hasattr(zero, name)]
    if kind not in RELIED_ON or missing:
        raise RuntimeError(
            f"this DeepSpeed's optimizer is {kind}{''.join(f', without {n}' for n in missing)}; "
            "optimizer.update=fused does not know it: set optimizer.update=stock, or install the "
            "DeepSpeed that pyproject.toml names."
        )
    fused = FusedStep(
        zero.optimizer,
        gradient_clipping=gradient_clipping,
        shared_out=True,
        operator=operator,
    )
    if kind == "DeepSpeedZeroOptimizer":
        zero.step = _SharedGradients(zero, fused)
    else:
        zero.step = _WholeGradients(zero, fused, reduce_bucket_size)


class _ZeroStep(ABC):
    """Takes the place of `step` in a wrapper of DeepSpeed's; waits for no device."""

    masters: str
    weights: str
    flat: str

    def __init__(self, zero: Any, fused: FusedStep) -> None:
        self._zero = zero
        self._fused = fused
        zero.norm_limit = None  # step.py says it before each step

    @torch.no_grad()
    def __call__(self) -> None:
        """Steps this rank's partitions and gathers everyone's; collective."""
        from deepspeed.runtime.utils import all_gather_dp_groups

        zero = self._zero
        groups, weights = zero.real_dp_process_group, getattr(zero, self.weights)
        parts = [
            [Part(master, self._gradients(index), weights[index][dist.get_rank(groups[index])])]
            for index, master in enumerate(getattr(zero, self.masters))
        ]
        zero._global_grad_norm = self._fused(parts, zero.norm_limit)
        zero.overflow = False  # whether it was refused only the device knows
        zero._lazy_init_hp_params_optimizer_state()  # after the first step there is a state
        self._drop_gradients()
        all_gather_dp_groups(
            groups_flat=getattr(zero, self.flat),
            partitioned_param_groups=weights,
            dp_process_group=groups,
            start_alignment_factor=zero.nccl_start_alignment_factor,
            allgather_bucket_size=zero.allgather_bucket_size,
        )

    @abstractmethod
    def _gradients(self, index: int) -> list[Tensor]:
        """This rank's share of the group's gradient, in the order of its partition."""

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Drops what the engine's `zero_grad`, which follows, does not."""


class _SharedGradients(_ZeroStep):
    """For DeepSpeedZeroOptimizer, whose gradients are used as they lie: flat where it sums a
    bfloat16 module's into a float32 buffer, else by parameter."""

    masters = "single_partition_of_fp32_groups"
    weights = "parallel_partitioned_bit16_groups"
    flat = "bit16_groups_flat"

    def _gradients(self, index: int) -> list[Tensor]:
        given = self._zero.averaged_gradients[index]
        flat = getattr(given, "flat_partition", None)
        return [flat] if flat is not None else [piece.contiguous() for piece in given]

    def _drop_gradients(self) -> None:
        zero = self._zero
        zero.micro_step_id = -1  # DeepSpeed's INITIAL_MICRO_STEP_ID
        zero._release_preflattened_grad_buffers()
        for index in list(zero.averaged_gradients):
            zero.averaged_gradients[index] = zero.all_grad_tensors[index] = None


class _WholeGradients(_ZeroStep):
    """For BF16_Optimizer. It fills its sums with zeros twice a step and adds a float32 copy of
    each gradient to them; here the first gradient of a step is copied over the old sum. The engine
    would copy the sums into messages and back, also where there is one rank; they are reduced
    where they lie."""

    masters = "fp32_groups_flat_partition"
    weights = "bf16_partitioned_groups"
    flat = "bf16_groups_flat"

    def __init__(self, zero: Any, fused: FusedStep, reduce_bucket_size: int) -> None:
        super().__init__(zero, fused)
        self._message_size = reduce_bucket_size
        zero._update_hp_grad = self._add
        zero.clear_hp_grads = self._clear
        zero.get_grads_for_reduction = self._reduce

    def _gradients(self, index: int) -> list[Tensor]:
        return [self._zero.fp32_groups_gradient_flat_partition[index]]

    def _drop_gradients(self) -> None:
        """Nothing is left: `zero_grad` comes to `_clear`."""

    @torch.no_grad()
    def _add(self, weight: Tensor, group: int, place: int, clear_lp_grads: bool) -> None:
        """Adds the gradient of a weight to its sum, as DeepSpeed's does; it may begin the sum."""
        if weight.grad is None:
            return
        gradient, total = weight.grad.reshape(-1), self._zero.fp32_groups_gradients[group][place]
        has_gradients = self._zero.fp32_groups_has_gradients[group]
        if has_gradients[place]:
            total.add_(gradient)
        else:
            total.copy_(gradient)
        has_gradients[place] = True
        weight._hp_grad = total
        if clear_lp_grads:
            weight.grad.zero_()

    def _clear(self) -> None:
        """Forgets the sums; the numbers stay until something is copied over them."""
        has_gradients = self._zero.fp32_groups_has_gradients
        has_gradients[:] = [[False] * len(group) for group in has_gradients]

    def _reduce(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Averages the sums over the ranks, zero where this rank had no gradient, in messages of
        the size that the configuration says; leaves nothing for the engine to reduce."""
        zero = self._zero
        for totals, given in zip(
            zero.fp32_groups_gradients, zero.fp32_groups_has_gradients, strict=True
        ):
            for total, has_gradient in zip(totals, given, strict=True):
                if not has_gradient:
                    total.zero_()
        for flat, group in zip(
            zero.fp32_groups_gradients_flat, zero.real_dp_process_group, strict=True
        ):
            ranks = dist.get_world_size(group)
            for message in flat.split(self._message_size) if ranks > 1 else ():
                dist.all_reduce(message, group=group)
                message.mul_(1.0 / ranks)
        return [], {}
