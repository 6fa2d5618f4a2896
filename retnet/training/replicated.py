"""The optimizer of ZeRO stage 0: every rank holds everything, in float32 where it matters.

DeepSpeed has no such thing. Below stage 1 it sums bfloat16 gradients in bfloat16, refuses to sum
them in float32, and begins with a step on zero gradients, which advances Adam's counter: the first
real step then is 0.74 of what stages 1 to 3 take, and the loss curves part. So the engine is run in
its float32 mode, and this wrapper keeps what the ZeRO wrappers keep: float32 master weights,
gradients summed in float32 over micro-steps and ranks, the norm, the clipping, and the refusal of a
step that is not finite. It offers what `deepspeed.runtime.engine` asks of an optimizer, no more.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retnet.training.fused_step import FusedStep, Part
from retnet.training.optimizer import Update


class ReplicatedOptimizer:
    """Master weights and clipping around a plain optimizer; a float32 weight is its own master."""

    def __init__(
        self,
        inner: torch.optim.AdamW,
        *,
        gradient_clipping: float,
        update: Update,
        operator: Callable | None = None,
    ) -> None:
        """Replaces the low-precision weights in the groups of `inner` by float32 masters;
        `operator` as in `FusedStep`."""
        self.inner = inner
        self.overflow = False  # DeepSpeed reads it: True says that the step was not taken
        self.norm_limit: Tensor | None = None  # step.py says it before each step
        self._fused: FusedStep | None = None
        if update is Update.fused:
            self._fused = FusedStep(
                inner, gradient_clipping=gradient_clipping, shared_out=False, operator=operator
            )
        self._global_grad_norm: Tensor | float = 0.0  # DeepSpeed reads it
        self._max_norm = gradient_clipping or float("inf")
        self._weights: list[Tensor] = []
        self._masters: list[Tensor] = []
        for group in inner.param_groups:
            masters = [self._master_of(weight) for weight in group["params"]]
            self._weights.extend(group["params"])
            self._masters.extend(masters)
            group["params"] = masters

    def _master_of(self, weight: Tensor) -> Tensor:
        if weight.dtype == torch.float32:
            return weight
        master = weight.detach().float().requires_grad_()
        weight.register_post_accumulate_grad_hook(_accumulate_into(master))
        return master

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the inner optimizer."""
        return self.inner.param_groups

    @property
    def state(self) -> dict[Tensor, Any]:
        """The state of the inner optimizer, by master weight."""
        return self.inner.state

    def masters(self) -> dict[Tensor, Tensor]:
        """The float32 weight of each of the module's weights."""
        return dict(zip(self._weights, self._masters, strict=True))

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """The float32 gradients that DeepSpeed averages over the ranks, in place."""
        for master in self._masters:
            if master.grad is None:  # unused on this rank, perhaps used on another
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self._masters], {}

    @torch.no_grad()
    def step(self) -> None:
        """Clips and steps, or does nothing where the gradient's norm is not finite or above the
        limit. The fused step does not say here which it was: only the device knows."""
        if self._fused is not None:
            self._global_grad_norm = self._fused(self._parts(), self.norm_limit)
        else:
            self._stock_step()
        for master in self._masters:
            master.grad = None

    def _parts(self) -> list[list[Part]]:
        """The fused step's parts, by group: each weight is one."""
        weights = iter(zip(self._weights, self._masters, strict=True))
        groups = []
        for group in self.param_groups:
            parts = []
            for _ in group["params"]:
                weight, master = next(weights)
                lower = None if weight is master else weight
                parts.append(Part(master, [master.grad.contiguous()], lower))
            groups.append(parts)
        return groups

    def _stock_step(self) -> None:
        """As torch does it, with a look at the norm."""
        self._global_grad_norm = torch.nn.utils.clip_grad_norm_(self._masters, self._max_norm)
        norm = self._global_grad_norm.double()
        good = norm.isfinite()
        if self.norm_limit is not None:
            good &= norm <= self.norm_limit
        self.overflow = not bool(good)
        if not self.overflow:
            self.inner.step()
            lower = [
                (weight, master)
                for weight, master in zip(self._weights, self._masters, strict=True)
                if weight is not master
            ]
            if lower:
                torch._foreach_copy_([pair[0] for pair in lower], [pair[1] for pair in lower])


def _accumulate_into(master: Tensor) -> Callable[[Tensor], None]:
    """A hook that moves a weight's fresh gradient into the float32 sum of its master."""

    def accumulate(weight: Tensor) -> None:
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return accumulate
