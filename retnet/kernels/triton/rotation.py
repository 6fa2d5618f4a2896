"""Rotation of queries and keys as a Triton kernel: one pass over memory forward and one backward,
which turns by the opposite angle. Not here: the angles themselves.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.triton.tiles import compute_dtype, launching_on, neighboring, tile_of_rows


def rotate(x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None, interleaved: bool) -> Tensor:
    """Rotates pairs (2i, 2i+1) of the last dimension, or (i, i + K/2), by their angles; then times
    `scale`.

    x [B, T, H, K], also a strided view; cos, sin [B or 1, T, 1, K/2] and scale [B or 1, T, H, 1] or
    None, broadcast against x. Computed in float32 (float64 where x or cos is), returned in x's
    dtype. ValueError where K is not twice the number of angles, or where an angle or the scale
    wants a gradient: they are functions of position, and none is computed.
    """
    if x.shape[-1] != 2 * cos.shape[-1]:
        raise ValueError(
            f"rotate of rows of {x.shape[-1]} by {cos.shape[-1]} angles: needed two elements an "
            "angle"
        )
    if any(table is not None and table.requires_grad for table in (cos, sin, scale)):
        raise ValueError(
            "rotate: cos, sin or scale requires a gradient, which the Triton kernel does not "
            "compute; set kernels.elementwise=torch"
        )
    return _rotate(x, cos, sin, scale, interleaved, False)


@triton.jit
def _kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    scale_ptr,
    y_ptr,
    rows,
    time,
    x_batch,
    x_time,
    x_head,
    cos_batch,
    cos_time,
    sin_batch,
    sin_time,
    scale_batch,
    scale_time,
    scale_head,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # a head of a token
    inside = row < rows
    row = row.to(tl.int64)
    token, head = row // HEADS, row % HEADS
    batch, t = token // time, token % time
    half: tl.constexpr = WIDTH // 2
    pair = tl.arange(0, BLOCK // 2)[None, :]
    mask = inside & (pair < half)
    cos_at = batch * cos_batch + t * cos_time + pair
    sin_at = batch * sin_batch + t * sin_time + pair
    cos = tl.load(cos_ptr + cos_at, mask=mask, other=0.0).to(COMPUTE)
    sin = tl.load(sin_ptr + sin_at, mask=mask, other=0.0).to(COMPUTE)
    if BACKWARD:
        sin = -sin
    if scale_ptr is not None:
        scale_at = batch * scale_batch + t * scale_time + head * scale_head
        scale = tl.load(scale_ptr + scale_at, mask=inside, other=0.0).to(COMPUTE)
        cos *= scale
        sin *= scale
    x_row = x_ptr + batch * x_batch + t * x_time + head * x_head
    y_row = y_ptr + row * WIDTH
    if INTERLEAVED:  # whole rows, taken apart in registers: loads stay wide
        column = tl.arange(0, BLOCK)[None, :]
        whole = inside & (column < WIDTH)
        x = tl.load(x_row + column, mask=whole, other=0.0).to(COMPUTE)
        a, b = tl.split(tl.reshape(x, (ROWS, BLOCK // 2, 2)))
        y = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (ROWS, BLOCK))
        tl.store(y_row + column, y.to(y_ptr.dtype.element_ty), mask=whole)
    else:
        a = tl.load(x_row + pair, mask=mask, other=0.0).to(COMPUTE)
        b = tl.load(x_row + half + pair, mask=mask, other=0.0).to(COMPUTE)
        tl.store(y_row + pair, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=mask)
        tl.store(y_row + half + pair, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("retnet::rotate", mutates_args=())
def _rotate(
    x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None, interleaved: bool, backward: bool
) -> Tensor:
    y = x.new_empty(x.shape)
    (batch, time, heads, width), x = x.shape, neighboring(x)
    cos, sin = (neighboring(table).expand(batch, time, 1, -1) for table in (cos, sin))
    strides = (0, 0, 0)
    if scale is not None:
        scale = scale.expand(batch, time, heads, 1)
        strides = scale.stride()[:3]
    tile = tile_of_rows(max(width, 2))
    with launching_on(x):
        _kernel[(triton.cdiv(batch * time * heads, tile.rows),)](
            x,
            cos,
            sin,
            scale,
            y,
            batch * time * heads,
            time,
            *x.stride()[:3],
            *cos.stride()[:2],
            *sin.stride()[:2],
            *strides,
            HEADS=heads,
            WIDTH=width,
            INTERLEAVED=interleaved,
            BACKWARD=backward,
            ROWS=tile.rows,
            BLOCK=tile.block,
            COMPUTE=compute_dtype(x, cos),
            num_warps=tile.warps,
        )
    return y


@_rotate.register_fake
def _(
    x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None, interleaved: bool, backward: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cos, sin, scale, ctx.interleaved, ctx.backward = inputs
    ctx.save_for_backward(cos, sin, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = _rotate(grad, *ctx.saved_tensors, ctx.interleaved, not ctx.backward)
    return grad_x, None, None, None, None, None


_rotate.register_autograd(_backward, setup_context=_keep)
