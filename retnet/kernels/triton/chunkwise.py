"""Retention in the chunkwise form as Triton kernels: three launches forward, five backward, each a
tiled matrix product.

    scores   P = gamma^(i-j) q_i k_j inside each chunk, once, in the operands' dtype
    states   S_n before each chunk, in the dtype of the product that reads them
    outputs  o = gamma^(i+1) q_i S_n + P v

and backward the same three kernels on other operands: dP from do and v, the states' gradients G_n
from q and do, from the last chunk to the first; then dq = do S_n^T + dP k, dk = v G_n^T + dP^T q,
dv = k G_n + P^T do, each with its weights. The same arithmetic as `retnet/kernels/chunkwise.py`.
Not here: the kernels (`chunkwise_products.py`, `chunkwise_states.py`), their launches
(`chunkwise_launch.py`).
"""

from typing import Any

import torch
from torch import Tensor

from retnet.kernels.chunkwise import retention_chunkwise as torch_retention
from retnet.kernels.reference import check_decay, check_shapes, wants_gradient
from retnet.kernels.reference import retention_parallel as torch_parallel
from retnet.kernels.triton.chunkwise_launch import Launch, states_dtype
from retnet.kernels.triton.chunkwise_tiles import chunk_for
from retnet.kernels.triton.tiles import neighboring

CHUNK_OF_WIDE_HEADS, CHUNK_OF_NARROW_HEADS = 256, 128


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    chunk_size: int = 128,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Retention (arXiv:2307.08621, equation 7); bitwise the same from run to run.

    q, k [B, T, H, K]; v [B, T, H, V]; log_decay [H]; state [B, H, K, V] float32 or None;
    segment_start [B, T] and mask [B, T] as in `retnet.kernels.reference`. Returns o [B, T, H, V]
    in v's dtype and, when `return_state`, the state [B, H, K, V] in float32 after the last token.
    Gradients flow to q, k, v and the state, once.

    `chunk_size` is rounded down to 256, 128, 64, 32 or 16 tokens, but not below. Products run in
    v's dtype, which under autocast is autocast's; sums and the state are float32. float32 products
    are exact unless `torch.set_float32_matmul_precision` allows TF32. float64 goes to plain torch.
    """
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    if v.dtype != torch.float64 and torch.is_autocast_enabled(v.device.type):
        v = v.to(torch.get_autocast_dtype(v.device.type))
    check_decay(log_decay)
    if v.dtype == torch.float64:
        return torch_retention(
            *(q, k, v, log_decay, state, segment_start, mask),
            chunk_size=chunk_size,
            return_state=return_state,
        )
    age = None
    if mask is not None:
        k = k * mask[..., None, None]  # a masked token is seen by nobody
        age = mask.cumsum(dim=1, dtype=torch.int32)
    if segment_start is not None:
        segment_start = segment_start.to(torch.int32)
    chunk = chunk_for(chunk_size, v.shape[1])
    o, final, _, _ = _retention(
        q.to(v.dtype), k.to(v.dtype), v, log_decay, state, segment_start, age, chunk, return_state
    )
    if mask is not None:
        o = o * mask[..., None, None]
    return o, final if return_state else None


def retention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The parallel form (equation 5) without its scores [T, T]: the same by chunks, of 256 tokens
    for K = 256 and 128 below. Shapes and meaning as in `retention_chunkwise`. In float64, and where
    log_decay wants a gradient, plain torch's, which has it."""
    if v.dtype == torch.float64 or wants_gradient(log_decay):
        return torch_parallel(
            q, k, v, log_decay, state, segment_start, mask, return_state=return_state
        )
    return retention_chunkwise(
        *(q, k, v, log_decay, state, segment_start, mask),
        chunk_size=CHUNK_OF_WIDE_HEADS if q.shape[-1] > 160 else CHUNK_OF_NARROW_HEADS,
        return_state=return_state,
    )


def _empties(
    q: Tensor, v: Tensor, chunk: int, return_state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o [B, T, H, V], the final state [B, H, K, V] or nothing, scores [B, H, N, C, C] and states
    [B, H, N, K, V], as the operator returns them."""
    (batch, time, heads, key_dim), value_dim = q.shape, v.shape[-1]
    chunks = -(-time // chunk)
    shape = (batch, heads, key_dim, value_dim) if return_state else (0,)
    return (
        v.new_empty((batch, time, heads, value_dim)),
        v.new_empty(shape, dtype=torch.float32),
        v.new_empty((batch, heads, chunks, chunk, chunk)),
        v.new_empty((batch, heads, chunks, key_dim, value_dim), dtype=states_dtype(v)),
    )


@torch.library.custom_op("retnet::retention", mutates_args=())
def _retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    age: Tensor | None,
    chunk: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o and the final state; then the scores and the states, which the backward pass reads."""
    o, final, scores, states = _empties(q, v, chunk, return_state)
    if not v.shape[:3].numel():
        if return_state:
            final.zero_() if state is None else final.copy_(state)
        return o, final, scores, states
    launch = Launch(q, k, v, log_decay, segment_start, age, chunk)
    launch.scores(launch.q, launch.k, scores)
    launch.scan(launch.k, launch.v, state, states, final if return_state else None)
    launch.outputs(launch.q, states, scores, launch.v, o)
    return o, final, scores, states


@_retention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    age: Tensor | None,
    chunk: int,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empties(q, v, chunk, return_state)


@torch.library.custom_op("retnet::retention_backward", mutates_args=())
def _retention_backward(
    grad: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segment_start: Tensor | None,
    age: Tensor | None,
    scores: Tensor,
    states: Tensor,
    with_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and of the state [B, H, K, V], empty unless `with_state`."""
    dq, dk, dv, dstate = _empty_gradients(q, k, v, with_state)
    if not v.shape[:3].numel():
        if with_state:
            dstate.zero_() if grad_final is None else dstate.copy_(grad_final)
        return dq, dk, dv, dstate
    launch = Launch(q, k, v, log_decay, segment_start, age, scores.shape[-1])
    do = neighboring(grad.to(v.dtype))
    dscores, dstates = torch.empty_like(scores), torch.empty_like(states)
    launch.scores(do, launch.v, dscores)
    launch.scan(launch.q, do, grad_final, dstates, dstate if with_state else None, backward=True)
    launch.outputs(do, states.mT, dscores, launch.k, dq)
    launch.outputs(launch.v, dstates.mT, dscores, launch.q, dk, backward=True)
    launch.outputs(launch.k, dstates, scores, do, dv, backward=True)
    return dq, dk, dv, dstate


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, with_state: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if with_state else (0,)
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        v.new_empty(shape, dtype=torch.float32),
    )


@_retention_backward.register_fake
def _(
    grad: Tensor,
    grad_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    segment_start: Tensor | None,
    age: Tensor | None,
    scores: Tensor,
    states: Tensor,
    with_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v, with_state)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, log_decay, state, segment_start, age, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.state_dtype = None if state is None else state.dtype
    ctx.save_for_backward(q, k, v, log_decay, segment_start, age, *output[2:])


def _backward(
    ctx: Any, grad: Tensor | None, grad_final: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the Triton kernels of retention are differentiated once; create_graph=True wants "
            'more: set kernels.retention=torch and forward_mode="parallel" there'
        )
    q, k, v, *_ = ctx.saved_tensors
    if grad is None:
        grad = v.new_zeros(()).expand(v.shape)
    if grad_final is not None and not grad_final.numel():  # of a state that was not asked for
        grad_final = None
    with_state = ctx.state_dtype is not None
    dq, dk, dv, dstate = _retention_backward(grad, grad_final, *ctx.saved_tensors, with_state)
    return dq, dk, dv, None, dstate.to(ctx.state_dtype) if with_state else None, *[None] * 4


_retention.register_autograd(_backward, setup_context=_keep)
