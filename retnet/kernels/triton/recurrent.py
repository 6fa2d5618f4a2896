"""Retention one token after the other as a Triton kernel, for decoding: the state is read once and
written once for all tokens of a call, if asked in the memory it was read from. Not here: gradients,
for which, as for float64, the torch form answers.

    S_n = gamma S_{n-1} + k_n v_n^T,   o_n = q_n S_n   (arXiv:2307.08621, equation 6)

A program keeps all K rows of some columns of one head's state in registers. The columns are
reasoned, not measured: few where a batch is small, so that all multiprocessors have work, more
where it is large, so that rows are read in longer pieces.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.recurrent import check_in_place
from retnet.kernels.recurrent import retention_recurrent as torch_form
from retnet.kernels.reference import check_shapes, wants_gradient
from retnet.kernels.triton.tiles import launching_on, neighboring

ENOUGH_PROGRAMS = 512
"Of which a large GPU (132 multiprocessors, or 304) is full, as the state in flight goes."
NARROWEST, WIDEST = 16, 32
"Columns of a tile: 64 and 128 bytes of a row; memory moves no fewer, and caches no more, at once."
ELEMENTS_PER_THREAD = 32
"Of the state, in registers."


def retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    return_state: bool = True,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Shapes and meaning as in `retnet.kernels.recurrent`; computed in float32.

    q, k [B, T, H, K]; v [B, T, H, V], also strided views and of several dtypes; log_decay [H];
    state [B, H, K, V] or None; segment_start, mask [B, T] or None. Returns o [B, T, H, V] in v's
    dtype and, when `return_state`, the state in float32. in_place: `state` itself, overwritten.
    Raises ValueError on shapes that do not go together, and where in_place has no state or would
    overwrite what a gradient needs.
    """
    inputs = (q, k, v, log_decay, state, segment_start, mask)
    if wants_gradient(*inputs[:5]) or any(x.dtype == torch.float64 for x in (q, k, v)):
        return torch_form(*inputs, return_state=return_state, in_place=in_place)
    check_shapes(*inputs)
    if in_place:
        check_in_place(state)
        o, after = _retention_recurrent_(*inputs), state
    else:
        o, after = _retention_recurrent(*inputs, return_state)
    return o, after if return_state else None


def tile_of_state(key_dim: int, value_dim: int, heads: int) -> tuple[int, int, int]:
    """How much of a state [K, V] a program holds, for `heads` heads of all sequences together:
    rows and columns, powers of two, and warps."""
    rows, widest = triton.next_power_of_2(key_dim), triton.next_power_of_2(value_dim)
    columns = min(WIDEST, widest)
    while columns > NARROWEST and heads * triton.cdiv(value_dim, columns) < ENOUGH_PROGRAMS:
        columns //= 2
    warps = min(16, max(1, rows * columns // (32 * ELEMENTS_PER_THREAD)))
    return rows, columns, warps


@triton.jit
def _step(
    state,
    log_decay,
    q_ptr,
    k_ptr,
    v_ptr,
    segment_start_ptr,
    mask_ptr,
    n,
    row,
    column,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
):
    """One token: the state [ROWS, COLUMNS] after it, and o [COLUMNS]."""
    seen = True
    if mask_ptr is not None:  # a masked token neither decays nor is seen
        seen = tl.load(mask_ptr + n) != 0
    v = tl.load(v_ptr + column, mask=(column < VALUE) & seen, other=0.0).to(tl.float32)
    q = tl.load(q_ptr + row, mask=(row < KEY) & seen, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + row, mask=(row < KEY) & seen, other=0.0).to(tl.float32)
    # In double: a GPU's float32 exp is off by 2^-22, and the state multiplies by it at every token.
    # Here: behind the loads, for which one token alone waits.
    decay = tl.exp(log_decay).to(tl.float32)
    state *= tl.where(seen, decay, 1.0)
    if segment_start_ptr is not None:
        start = tl.load(segment_start_ptr + n)
        previous = tl.load(segment_start_ptr + tl.maximum(n - 1, 0))
        state = tl.where(tl.where(n > 0, start == previous, start < 0), state, 0.0)
    state += k[:, None] * v[None, :]
    return state, tl.sum(q[:, None] * state, axis=0)


@triton.jit
def _kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    log_decay_ptr,
    state_ptr,
    segment_start_ptr,
    mask_ptr,
    o_ptr,
    after_ptr,
    time,
    heads,
    q_batch,
    q_time,
    q_head,
    k_batch,
    k_time,
    k_head,
    v_batch,
    v_time,
    v_head,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles: tl.constexpr = (VALUE + COLUMNS - 1) // COLUMNS
    sequence = (tl.program_id(0) // tiles // heads).to(tl.int64)
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    row = tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < KEY)[:, None] & (column < VALUE)[None, :]
    log_decay = tl.load(log_decay_ptr + head).to(tl.float64)
    # strides that the compiler knows: it moves 16 bytes at once where V is a multiple of 4
    state_at = (sequence * heads + head) * (KEY * VALUE) + row[:, None] * VALUE + column[None, :]
    state = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    if state_ptr is not None:
        state = tl.load(state_ptr + state_at, mask=inside, other=0.0).to(tl.float32)
    q = q_ptr + sequence * q_batch + head * q_head
    k = k_ptr + sequence * k_batch + head * k_head
    v = v_ptr + sequence * v_batch + head * v_head
    o_at = (sequence * time * heads + head) * VALUE + column
    start = segment_start_ptr if segment_start_ptr is None else segment_start_ptr + sequence * time
    mask = mask_ptr if mask_ptr is None else mask_ptr + sequence * time
    for n in range(time):
        state, o = _step(state, log_decay, q, k, v, start, mask, n, row, column, KEY, VALUE)
        tl.store(o_ptr + o_at, o.to(o_ptr.dtype.element_ty), mask=column < VALUE)
        q += q_time
        k += k_time
        v += v_time
        o_at += heads * VALUE
    if after_ptr is not None:
        tl.store(after_ptr + state_at, state.to(after_ptr.dtype.element_ty), mask=inside)


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
    o: Tensor,
    after: Tensor | None,
) -> None:
    """Writes o [B, T, H, V] and, unless None, after [B, H, K, V], which may be `state`; all three
    contiguous."""
    batch, time, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    if batch * heads * value_dim == 0:
        return
    q, k, v = neighboring(q), neighboring(k), neighboring(v)
    rows, columns, warps = tile_of_state(key_dim, value_dim, batch * heads)
    with launching_on(q):
        _kernel[(batch * heads * triton.cdiv(value_dim, columns),)](
            q,
            k,
            v,
            log_decay.to(q.device).contiguous(),
            state,
            None if segment_start is None else segment_start.contiguous(),
            None if mask is None else mask.contiguous(),
            o,
            after,
            time,
            heads,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            KEY=key_dim,
            VALUE=value_dim,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=warps,
        )


def _outputs(q: Tensor, v: Tensor, return_state: bool) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and the state [B, H, K, V], not filled; no state is an empty tensor."""
    batch, _, heads, value_dim = v.shape
    shape = (batch, heads, q.shape[-1], value_dim) if return_state else (0,)
    return v.new_empty(v.shape), v.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("retnet::retention_recurrent", mutates_args=())
def _retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    o, after = _outputs(q, v, return_state)
    before = None if state is None else state.contiguous()
    written = after if return_state else None
    _launch(q, k, v, log_decay, before, segment_start, mask, o, written)
    return o, after


@_retention_recurrent.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    return _outputs(q, v, return_state)


@torch.library.custom_op("retnet::retention_recurrent_", mutates_args=("state",))
def _retention_recurrent_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    segment_start: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    o = v.new_empty(v.shape)
    dense = state.contiguous()  # `state` itself, unless it is a view
    _launch(q, k, v, log_decay, dense, segment_start, mask, o, dense)
    if dense is not state:
        state.copy_(dense)
    return o


@_retention_recurrent_.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    segment_start: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return v.new_empty(v.shape)
