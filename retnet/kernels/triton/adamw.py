"""AdamW over flat tensors as one Triton kernel: 28 bytes a parameter with a bfloat16 gradient and a
bfloat16 copy of the weights. Not here: the norm that clips, which tensors are flat, when to step.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.triton.tiles import launching_on

BLOCK = 1024


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weight: Tensor | None,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    coefficient: Tensor,
    not_finite: Tensor,
) -> None:
    """One step of AdamW in place (arXiv:1711.05101; torch.optim.AdamW's order: decay first).

    parameter, exp_avg, exp_avg_sq [N] float32 and contiguous; gradient [N] in any float dtype;
    weight [N] or None: the low-precision copy of the parameter, written too. Three scalars are on
    the device, so that nothing waits for them: step, the number of this step from 1, which only the
    device knows where steps are skipped; coefficient, which the gradient is multiplied by (clipping
    and loss scale); not_finite: where it is not 0, nothing at all is written. lr and weight_decay
    are Python numbers: changing them compiles nothing, another beta1, beta2 or eps does.
    ValueError for tensors that do not go together.
    """
    tensors = {
        "gradient": gradient,
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq,
        "weight": parameter if weight is None else weight,
    }
    for name, tensor in tensors.items():
        if tensor.shape != parameter.shape or not tensor.is_contiguous():
            raise ValueError(
                f"adamw_step: {name} {list(tensor.shape)} beside parameter "
                f"{list(parameter.shape)}; needed contiguous tensors of one shape"
            )
    for name in ("exp_avg", "exp_avg_sq"):
        if tensors[name].dtype != torch.float32 or parameter.dtype != torch.float32:
            raise ValueError(
                f"adamw_step: parameter {parameter.dtype} and {name} {tensors[name].dtype}; needed "
                "float32"
            )
    moments = parameter, gradient, exp_avg, exp_avg_sq, weight
    numbers = lr, beta1, beta2, eps, weight_decay
    with torch.no_grad():
        _adamw_step(*moments, step, *numbers, coefficient, not_finite)


@triton.jit
def _kernel(
    parameter_ptr,
    gradient_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    weight_ptr,
    step_ptr,
    coefficient_ptr,
    not_finite_ptr,
    elements,
    lr,
    keep,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    ONE_MINUS_BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(not_finite_ptr) == 0:
        # float64: 1 - beta^step loses half of float32's digits in the first steps
        step = tl.load(step_ptr).to(tl.float64)
        step_size = (lr / (1.0 - tl.exp(step * LOG_BETA1))).to(tl.float32)
        root = tl.sqrt(1.0 - tl.exp(step * LOG_BETA2)).to(tl.float32)
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = at < elements
        gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(tl.float32)
        gradient *= tl.load(coefficient_ptr)
        exp_avg = tl.load(exp_avg_ptr + at, mask=mask, other=0.0)
        exp_avg_sq = tl.load(exp_avg_sq_ptr + at, mask=mask, other=0.0)
        parameter = tl.load(parameter_ptr + at, mask=mask, other=0.0) * keep
        exp_avg += ONE_MINUS_BETA1 * (gradient - exp_avg)
        exp_avg_sq = BETA2 * exp_avg_sq + (1.0 - BETA2) * gradient * gradient
        parameter -= step_size * (exp_avg / (tl.sqrt(exp_avg_sq) / root + EPS))
        tl.store(exp_avg_ptr + at, exp_avg, mask=mask)
        tl.store(exp_avg_sq_ptr + at, exp_avg_sq, mask=mask)
        tl.store(parameter_ptr + at, parameter, mask=mask)
        if weight_ptr is not None:
            tl.store(weight_ptr + at, parameter.to(weight_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op(
    "retnet::adamw_step", mutates_args=("parameter", "exp_avg", "exp_avg_sq", "weight")
)
def _adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weight: Tensor | None,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    coefficient: Tensor,
    not_finite: Tensor,
) -> None:
    with launching_on(parameter):
        _kernel[(triton.cdiv(parameter.numel(), BLOCK),)](
            parameter,
            gradient,
            exp_avg,
            exp_avg_sq,
            weight,
            step,
            coefficient,
            not_finite,
            parameter.numel(),
            float(lr),
            1.0 - lr * weight_decay,
            LOG_BETA1=math.log(beta1) if beta1 else -math.inf,
            LOG_BETA2=math.log(beta2) if beta2 else -math.inf,
            ONE_MINUS_BETA1=1.0 - beta1,
            BETA2=beta2,
            EPS=eps,
            BLOCK=BLOCK,
            num_warps=4,
        )


@_adamw_step.register_fake
def _(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weight: Tensor | None,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    coefficient: Tensor,
    not_finite: Tensor,
) -> None:
    return None
