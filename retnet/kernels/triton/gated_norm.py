"""The norm over heads times its gate as Triton kernels: one pass over memory forward and one
backward. Not here: RMSNorm without a gate (`norms.py`, whose formulas hold for n below).

    y = silu(g) n,  dn = silu(g) dy,  dg = n s (1 + g (1 - s)) dy;  n = rms_norm(x), s = sigmoid(g)
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.triton.tiles import (
    as_heads,
    as_rows,
    compute_dtype,
    launching_on,
    persistent_programs,
    tile_of_rows,
)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """silu(gate) * rms_norm(x), each head's V values normalized by themselves.

    x [B, T, H, V], gate [B, T, H * V], whose rows may lie further apart than they are wide, weight
    [V] or None, for all heads -> [B, T, H * V]. Computed in float32 (float64 of float64), returned
    in the wider dtype of x and gate. ValueError where shapes do not go together.
    """
    if gate.shape != (*x.shape[:-2], x.shape[-2] * x.shape[-1]):
        raise ValueError(
            f"gated_rms_norm of x {list(x.shape)} and gate {list(gate.shape)}: needed a gate of "
            f"{[*x.shape[:-2], x.shape[-2] * x.shape[-1]]}"
        )
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(
            f"gated_rms_norm of heads of {x.shape[-1]} with weight {list(weight.shape)}: needed "
            f"[{x.shape[-1]}]"
        )
    return _gated_rms_norm(x, gate, weight, eps)


@triton.jit
def _forward_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    y_ptr,
    rows,
    x_stride,
    x_head_stride,
    gate_stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # a head of a token
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (column < WIDTH)
    row = row.to(tl.int64)[:, None]
    token, head = row // HEADS, row % HEADS
    x_at = token * x_stride + head * x_head_stride + column
    gate_at = token * gate_stride + head * WIDTH + column
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(COMPUTE)
    gate = tl.load(gate_ptr + gate_at, mask=mask, other=0.0).to(COMPUTE)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(COMPUTE)
    y *= gate * tl.sigmoid(gate)
    tl.store(y_ptr + row * WIDTH + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    grad_ptr,
    grad_x_ptr,
    grad_gate_ptr,
    partial_ptr,
    rows,
    x_stride,
    x_head_stride,
    gate_stride,
    grad_stride,
    HEADS: tl.constexpr,
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
        token, head = row // HEADS, row % HEADS
        x_at = token * x_stride + head * x_head_stride + column
        x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(COMPUTE)
        in_row = head * WIDTH + column
        gate = tl.load(gate_ptr + token * gate_stride + in_row, mask=mask, other=0.0).to(COMPUTE)
        grad = tl.load(grad_ptr + token * grad_stride + in_row, mask=mask, other=0.0).to(COMPUTE)
        r = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)[:, None]
        r = tl.where(row < rows, r, 0.0)  # eps may be 0
        s = tl.sigmoid(gate)
        h = grad * gate * s  # the gradient of the normed and weighted row
        n = x * r
        if weight_ptr is not None:
            grad_weight += h * n
            n *= weight
            h *= weight
        grad_gate = grad * n * s * (1 + gate * (1 - s))
        grad_x = r * (h - x * (r * r * (tl.sum(h * x, axis=1) / WIDTH)[:, None]))
        at = row * WIDTH + column
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        tl.store(grad_gate_ptr + at, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
    if weight_ptr is not None:
        partial = tl.sum(grad_weight, axis=0)[None, :]
        tl.store(partial_ptr + program * WIDTH + column, partial, mask=column < WIDTH)


@torch.library.custom_op("retnet::gated_rms_norm", mutates_args=())
def _gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = gate.new_empty(gate.shape, dtype=torch.promote_types(x.dtype, gate.dtype))
    x, gate = as_heads(x), as_rows(gate)
    tokens, heads, width = x.shape
    tile = tile_of_rows(width)
    with launching_on(x):
        _forward_kernel[(triton.cdiv(tokens * heads, tile.rows),)](
            x,
            gate,
            None if weight is None else weight.contiguous(),
            y,
            tokens * heads,
            x.stride(0),
            x.stride(1),
            gate.stride(0),
            HEADS=heads,
            WIDTH=width,
            EPS=eps,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute_dtype(x, gate),
            num_warps=tile.warps,
        )
    return y


@_gated_rms_norm.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return gate.new_empty(gate.shape, dtype=torch.promote_types(x.dtype, gate.dtype))


@torch.library.custom_op("retnet::gated_rms_norm_backward", mutates_args=())
def _gated_rms_norm_backward(
    grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the gate and of the weight (empty without one)."""
    grad_x, grad_gate = x.new_empty(x.shape), gate.new_empty(gate.shape)
    x, gate, grad = as_heads(x), as_rows(gate), as_rows(grad)
    tokens, heads, width = x.shape
    tile, compute = tile_of_rows(width), compute_dtype(x, gate)
    programs = persistent_programs(x.device, triton.cdiv(tokens * heads, tile.rows))
    dtype = torch.float64 if compute == tl.float64 else torch.float32
    partial = None if weight is None else x.new_empty((programs, width), dtype=dtype)
    with launching_on(x):
        _backward_kernel[(programs,)](
            x,
            gate,
            None if weight is None else weight.contiguous(),
            grad,
            grad_x,
            grad_gate,
            partial,
            tokens * heads,
            x.stride(0),
            x.stride(1),
            gate.stride(0),
            grad.stride(0),
            HEADS=heads,
            WIDTH=width,
            EPS=eps,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute,
            num_warps=tile.warps,
        )
    grad_weight = x.new_empty(0) if weight is None else partial.sum(0).to(weight.dtype)
    return grad_x, grad_gate, grad_weight


@_gated_rms_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, gate: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = x.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    return x.new_empty(x.shape), gate.new_empty(gate.shape), grad_weight


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, gate, weight, ctx.eps = inputs
    ctx.save_for_backward(x, gate, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, weight = ctx.saved_tensors
    grad_x, grad_gate, grad_weight = _gated_rms_norm_backward(grad, x, gate, weight, ctx.eps)
    return grad_x, grad_gate, None if weight is None else grad_weight, None


_gated_rms_norm.register_autograd(_backward, setup_context=_keep)
