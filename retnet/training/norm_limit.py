"""The largest gradient norm that is no mistake, inside DeepSpeed's own optimizer steps: they refuse
a norm that is not finite, so one above the limit is shown to them as nan.

Ours (`fused_step.py`, `replicated.py`) look at the limit themselves. All of them take it from the
attribute `norm_limit` of the engine's optimizer, which `step.py` sets before each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

RELIED_ON = {
    "DeepSpeedZeroOptimizer": "scaled_global_norm",  # -> the norm times the loss scale
    "DeepSpeedZeroOptimizer_Stage3": "_get_norm_groups",  # -> the same by group
    "BF16_Optimizer": "get_grads_for_norm",  # -> (tensors, experts' tensors), for norm and clipping
}


def install_norm_limit(zero: Any) -> None:
    """Makes DeepSpeed's own step look at `norm_limit`, and keep in `norm_seen` what it saw.

    Raises:
        RuntimeError: this DeepSpeed has not what we rely on.
    """
    kind = type(zero).__name__
    name = RELIED_ON.get(kind)
    if name is None or not hasattr(zero, name):
        raise RuntimeError(
            f"this DeepSpeed's optimizer is {kind}{f', without {name}' if name else ''}; "
            "stability.mode does not know it: set stability.mode=off, or install the DeepSpeed "
            "that pyproject.toml names."
        )
    zero.norm_limit = zero.norm_seen = None
    wrap = {"scaled_global_norm": _whole, "_get_norm_groups": _by_group}.get(name, _of_tensors)
    setattr(zero, name, wrap(zero, getattr(zero, name)))


def norm_of(engine: DeepSpeedEngine) -> Tensor:
    """The norm of the last step's gradient before clipping, a scalar on the device; also where
    DeepSpeed refused it for the limit, which gives infinity then."""
    seen = getattr(engine.optimizer, "norm_seen", None)
    norm = seen if seen is not None else engine.get_global_grad_norm()
    if hasattr(engine.optimizer, "norm_seen"):
        engine.optimizer.norm_seen = None
    return torch.as_tensor(norm, device=engine.device)


def forget_gradients(engine: DeepSpeedEngine) -> None:
    """After a refused step: DeepSpeed's stage 2 with offload, where it sums a bfloat16 module's
    gradients in float32, goes on adding to the sums that it refused."""
    zero = engine.optimizer
    if getattr(zero, "cpu_offload", False):
        for index in list(zero.averaged_gradients):
            zero.averaged_gradients[index] = None


def _above(zero: Any, norm: Tensor | float) -> bool:
    """Whether the norm, times the loss scale, is finite and above the limit; it is kept then. The
    stock updates wait for the device themselves."""
    norm = float(norm) / zero.loss_scale if hasattr(zero, "loss_scale") else float(norm)
    above = zero.norm_limit is not None and norm > float(zero.norm_limit) and math.isfinite(norm)
    zero.norm_seen = norm if above else None
    return above


def _whole(zero: Any, norm_of_all: Callable) -> Callable:
    def scaled_global_norm(*args: Any, **kwargs: Any) -> Any:
        norm = norm_of_all(*args, **kwargs)
        return torch.full_like(torch.as_tensor(norm), math.nan) if _above(zero, norm) else norm

    return scaled_global_norm


def _by_group(zero: Any, norms_of_groups: Callable) -> Callable:
    def get_norm_groups() -> list[Any]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norms = norms_of_groups()
        if not _above(zero, combine_grad_norm_groups(norms)):
            return norms
        return [torch.full_like(torch.as_tensor(norm), math.nan) for norm in norms]

    return get_norm_groups


def _of_tensors(zero: Any, tensors_of: Callable) -> Callable:
    def get_grads_for_norm(for_clipping: bool = False) -> Any:
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        found = tensors_of(for_clipping=for_clipping)
        if not for_clipping:
            norm = get_global_norm_of_tensors(
                input_tensors=found[0], mpu=zero.mpu, norm_type=zero.norm_type
            )
            if _above(zero, norm) and found[0]:
                found[0][0].fill_(math.nan)
        return found

    return get_grads_for_norm
