"""The gate of a gated feed-forward as Triton kernels: one pass over memory forward, one backward.
Not here: the gate over the heads, which comes with their norm (`gated_norm.py`).

    y = silu(g) u,   dg = u s (1 + g (1 - s)) dy,   du = g s dy,   s = sigmoid(g)
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.triton.tiles import Tile, as_rows, compute_dtype, launching_on

COLUMNS = 512
"Of a tile, at most: widths such as 3456 leave little of the last tile empty."
ROWS = 8


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv:2002.05202); both [..., F], also the two halves of one [..., 2F].

    Computed in float32 (float64 of float64), returned in the wider dtype of the two. ValueError
    where shapes differ.
    """
    if gate.shape != up.shape:
        raise ValueError(
            f"swiglu of gate {list(gate.shape)} and up {list(up.shape)}: needed one shape"
        )
    return _swiglu(gate, up)


@triton.jit
def _forward_kernel(
    gate_ptr,
    up_ptr,
    y_ptr,
    rows,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (row < rows)[:, None] & (column < WIDTH)
    row = row.to(tl.int64)[:, None]  # rows times stride may pass 2^31
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(COMPUTE)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(COMPUTE)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * WIDTH + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    gate_ptr,
    up_ptr,
    grad_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    rows,
    gate_stride,
    up_stride,
    grad_stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (row < rows)[:, None] & (column < WIDTH)
    row = row.to(tl.int64)[:, None]
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(COMPUTE)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(COMPUTE)
    grad = tl.load(grad_ptr + row * grad_stride + column, mask=mask, other=0.0).to(COMPUTE)
    s = tl.sigmoid(gate)
    grad_gate = grad * up * s * (1 + gate * (1 - s))
    grad_up = grad * gate * s
    at = row * WIDTH + column
    tl.store(grad_gate_ptr + at, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_up_ptr + at, grad_up.to(grad_up_ptr.dtype.element_ty), mask=mask)


def _tile(width: int) -> Tile:
    return Tile(ROWS, min(COLUMNS, triton.next_power_of_2(max(width, 1))), 8)


@torch.library.custom_op("retnet::swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    y = gate.new_empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype))
    gate, up = as_rows(gate), as_rows(up)
    rows, width = gate.shape
    tile = _tile(width)
    with launching_on(gate):
        _forward_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, tile.block))](
            gate,
            up,
            y,
            rows,
            gate.stride(0),
            up.stride(0),
            WIDTH=width,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute_dtype(gate, up),
            num_warps=tile.warps,
        )
    return y


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape, dtype=torch.promote_types(gate.dtype, up.dtype))


@torch.library.custom_op("retnet::swiglu_backward", mutates_args=())
def _swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    grad, gate, up = as_rows(grad), as_rows(gate), as_rows(up)
    rows, width = gate.shape
    tile = _tile(width)
    with launching_on(gate):
        _backward_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(width, tile.block))](
            gate,
            up,
            grad,
            grad_gate,
            grad_up,
            rows,
            gate.stride(0),
            up.stride(0),
            grad.stride(0),
            WIDTH=width,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute_dtype(gate, up),
            num_warps=tile.warps,
        )
    return grad_gate, grad_up


@_swiglu_backward.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _swiglu_backward(grad, *ctx.saved_tensors)


_swiglu.register_autograd(_backward, setup_context=_keep)
