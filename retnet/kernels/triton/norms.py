"""RMSNorm, alone and after a residual sum, as Triton kernels: one pass over memory forward and one
backward. Not here: the norm over heads with its gate (`gated_norm.py`).

Backward keeps nothing but the inputs: a program holds whole rows, so it finds each row's mean
square again on the way. With r = (mean(x^2) + eps)^-1/2, h = grad * weight and D columns,

    y = x r weight,   dx = r h - x r^3 sum(h x) / D,   dweight = sum over rows of grad x r.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.triton.tiles import (
    as_rows,
    compute_dtype,
    launching_on,
    persistent_programs,
    tile_of_rows,
)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times `weight` (arXiv:1910.07467, equation
    4).

    x [..., D], weight [D] or None; computed in float32 (float64 of float64), returned in x's dtype.
    """
    _check(x, weight)
    return _rms_norm(x, weight, eps)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual sum and its norm: x + branch, rounded to x's dtype, and `rms_norm` of that.

    x, branch [..., D], weight [D] or None -> both [..., D]. ValueError where shapes differ.
    """
    if x.shape != branch.shape:
        raise ValueError(
            f"add_rms_norm of x {list(x.shape)} and branch {list(branch.shape)}: needed one shape"
        )
    _check(x, weight)
    return _add_rms_norm(x, branch, weight, eps)


def _check(x: Tensor, weight: Tensor | None) -> None:
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(
            f"RMSNorm of rows of {x.shape[-1]} with weight {list(weight.shape)}: needed "
            f"[{x.shape[-1]}]"
        )


@triton.jit
def _forward_kernel(
    x_ptr,
    branch_ptr,
    weight_ptr,
    total_ptr,
    y_ptr,
    rows,
    x_stride,
    branch_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (column < WIDTH)
    row = row.to(tl.int64)[:, None]  # rows times stride may pass 2^31
    x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(COMPUTE)
    if branch_ptr is not None:
        branch = tl.load(branch_ptr + row * branch_stride + column, mask=mask, other=0.0)
        total = (x + branch.to(COMPUTE)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * WIDTH + column, total, mask=mask)
        x = total.to(COMPUTE)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(COMPUTE)
    tl.store(y_ptr + row * WIDTH + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    x_ptr,
    weight_ptr,
    grad_ptr,
    grad_total_ptr,
    grad_x_ptr,
    partial_ptr,
    rows,
    x_stride,
    grad_stride,
    grad_total_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)[None, :]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(COMPUTE)
        grad_weight = tl.zeros([ROWS, BLOCK], dtype=COMPUTE)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < WIDTH)
        row = row.to(tl.int64)[:, None]
        x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(COMPUTE)
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=mask, other=0.0).to(COMPUTE)
        r = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)[:, None]
        r = tl.where(row < rows, r, 0.0)  # eps may be 0
        h = grad
        if weight_ptr is not None:
            grad_weight += grad * x * r
            h = grad * weight
        grad_x = r * (h - x * (r * r * (tl.sum(h * x, axis=1) / WIDTH)[:, None]))
        if grad_total_ptr is not None:
            past = row * grad_total_stride + column
            grad_x += tl.load(grad_total_ptr + past, mask=mask, other=0.0).to(COMPUTE)
        grad_x = grad_x.to(grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + row * WIDTH + column, grad_x, mask=mask)
    if weight_ptr is not None:
        partial = tl.sum(grad_weight, axis=0)[None, :]
        tl.store(partial_ptr + program * WIDTH + column, partial, mask=column < WIDTH)


def _forward(x: Tensor, branch: Tensor | None, weight: Tensor | None, eps: float) -> list[Tensor]:
    """[y], or [total, y] where there is a branch."""
    outputs = [x.new_empty(x.shape) for _ in range(1 if branch is None else 2)]
    x = as_rows(x)
    branch = None if branch is None else as_rows(branch)
    rows, width = x.shape
    tile = tile_of_rows(width)
    with launching_on(x):
        _forward_kernel[(triton.cdiv(rows, tile.rows),)](
            x,
            branch,
            None if weight is None else weight.contiguous(),
            None if branch is None else outputs[0],
            outputs[-1],
            rows,
            x.stride(0),
            0 if branch is None else branch.stride(0),
            WIDTH=width,
            EPS=eps,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute_dtype(x, branch),
            num_warps=tile.warps,
        )
    return outputs


@torch.library.custom_op("retnet::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return _forward(x, None, weight, eps)[0]


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("retnet::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    total, y = _forward(x, branch, weight, eps)
    return total, y


@_add_rms_norm.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("retnet::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x, to which grad_total is added, and of the weight (empty without one)."""
    grad_x = x.new_empty(x.shape)
    x, grad = as_rows(x), as_rows(grad)
    grad_total = None if grad_total is None else as_rows(grad_total)
    rows, width = x.shape
    tile, compute = tile_of_rows(width), compute_dtype(x)
    programs = persistent_programs(x.device, triton.cdiv(rows, tile.rows))
    dtype = torch.float64 if compute == tl.float64 else torch.float32
    partial = None if weight is None else x.new_empty((programs, width), dtype=dtype)
    with launching_on(x):
        _backward_kernel[(programs,)](
            x,
            None if weight is None else weight.contiguous(),
            grad,
            grad_total,
            grad_x,
            partial,
            rows,
            x.stride(0),
            grad.stride(0),
            0 if grad_total is None else grad_total.stride(0),
            WIDTH=width,
            EPS=eps,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute,
            num_warps=tile.warps,
        )
    return grad_x, x.new_empty(0) if weight is None else partial.sum(0).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if weight is None else weight.new_empty(
        weight.shape
    )


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad, None, x, weight, ctx.eps)
    return grad_x, None if weight is None else grad_weight, None


def _keep_total(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, branch, weight, ctx.eps = inputs
    ctx.branch_dtype = branch.dtype
    ctx.set_materialize_grads(False)  # an output that is not used costs no zeros
    ctx.save_for_backward(output[0], weight)


def _backward_of_total(
    ctx: Any, grad_total: Tensor | None, grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    grad_weight = None
    if grad is not None:
        grad_total, grad_weight = _rms_norm_backward(grad, grad_total, total, weight, ctx.eps)
    grad_branch = None if grad_total is None else grad_total.to(ctx.branch_dtype)
    return grad_total, grad_branch, None if weight is None else grad_weight, None


_rms_norm.register_autograd(_backward, setup_context=_keep)
_add_rms_norm.register_autograd(_backward_of_total, setup_context=_keep_total)
