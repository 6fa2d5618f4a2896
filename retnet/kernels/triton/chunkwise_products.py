"""The two products of chunkwise retention as Triton kernels: scores inside a chunk, and outputs
from scores and states, tiled like any matrix product, with the decay folded in.

Forward and backward are the same kernels on other operands, because both are the same recurrence.
The decay is a constant of its head, so nothing is summed up, stored or differentiated for it. Each
output tile has one owner, which adds in a fixed order: no atomics, and results repeat bit by bit.

Transposed operands are loaded from memory with swapped strides. None is an accumulator through
`tl.trans`: Triton 3.4 to 3.7.0 translates that product wrongly for Hopper.

Letters: B batch, T time, H heads, N chunks of C tokens, X and Y widths. Programs of axis 1 are
heads of sequences, b * H + h.
"""

import triton
import triton.language as tl

from retnet.kernels.triton.decay import elapsed, power, rate_of, rows_of, start_of, weight_of


@triton.jit
def scores_kernel(
    x,
    y,
    log_decay,
    segment_start,
    age,
    scores,
    time,
    chunks,
    x_batch,
    x_time,
    x_head,
    y_batch,
    y_time,
    y_head,
    HEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    X: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """scores [B, H, N, C, C]: gamma^(i-j) <x_i, y_j> where i sees j, by tiles of the lower
    triangle; tiles above the diagonal are not written, and nobody reads them.

    Axis 0: tiles of a chunk, chunk after chunk.
    """
    side: tl.constexpr = CHUNK // ROWS
    tiles: tl.constexpr = side * (side + 1) // 2
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    # tiles (0, 0), (1, 0), (1, 1), (2, 0), ...; a hundredth, because this root is an approximation
    row = (tl.sqrt(8.0 * tile + 1.0) * 0.5 - 0.49).to(tl.int32)
    i = row * ROWS + tl.arange(0, ROWS)
    j = (tile - row * (row + 1) // 2) * ROWS + tl.arange(0, ROWS)
    t_i, t_j = chunk * CHUNK + i, chunk * CHUNK + j
    if chunk * CHUNK + row * ROWS >= time:
        return
    x = rows_of(x, batch, head, t_i[:, None], x_batch, x_time, x_head, ALIGNED)
    y = rows_of(y, batch, head, t_j[None, :], y_batch, y_time, y_head, ALIGNED)
    product = tl.zeros((ROWS, ROWS), tl.float32)
    for start in tl.range(0, X, STEP, num_stages=STAGES):
        column = start + tl.arange(0, STEP)
        inside_x, inside_y = (t_i < time)[:, None], (t_j < time)[None, :]
        if X % STEP != 0:
            inside_x &= (column < X)[None, :]
            inside_y &= (column < X)[:, None]
        a = tl.load(x + column[None, :], mask=inside_x, other=0.0)
        b = tl.load(y + column[:, None], mask=inside_y, other=0.0)
        product = tl.dot(a, b, product, input_precision=PRECISION)

    rate = rate_of(log_decay, head)
    if age is not None:
        age += batch.to(tl.int64) * time
    seen = (i[:, None] >= j[None, :]) & (t_i < time)[:, None] & (t_j < time)[None, :]
    if segment_start is not None:
        segment_start += batch.to(tl.int64) * time
        start_i = tl.load(segment_start + t_i, mask=t_i < time, other=0)
        start_j = tl.load(segment_start + t_j, mask=t_j < time, other=0)
        seen &= start_i[:, None] == start_j[None, :]
    distance = elapsed(age, t_i + 1, time)[:, None] - elapsed(age, t_j + 1, time)[None, :]
    product = tl.where(seen, product * power(rate, distance), 0.0)
    place = (tl.program_id(1).to(tl.int64) * chunks + chunk) * CHUNK * CHUNK
    place = scores + place + i[:, None] * CHUNK + j[None, :]
    tl.store(place, product.to(scores.dtype.element_ty))


@triton.jit
def outputs_kernel(
    x,
    states,
    scores,
    y,
    log_decay,
    segment_start,
    age,
    out,
    time,
    chunks,
    x_batch,
    x_time,
    x_head,
    y_batch,
    y_time,
    y_head,
    HEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    STATE_ROW: tl.constexpr,
    STATE_COLUMN: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    STEP: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out [B, T, H, Y]: w_i x_i S_n + sum_j scores_ij y_j, w_i = gamma^(i+1), j <= i.

    BACKWARD takes what comes from later tokens: w_i = gamma^(C-1-i) and scores_ji, j >= i. A state
    S_n is [X, Y] with strides (STATE_ROW, STATE_COLUMN). Axis 0: tiles of Y, then of rows, chunk
    after chunk.
    """
    tiles: tl.constexpr = tl.cdiv(Y, BLOCK_Y)
    row_tile = tl.program_id(0) // tiles
    chunk, first = row_tile // (CHUNK // ROWS), row_tile % (CHUNK // ROWS) * ROWS
    begin = chunk * CHUNK
    if begin + first >= time:
        return
    end = tl.minimum(begin + CHUNK, time)
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    i = first + tl.arange(0, ROWS)
    t = begin + i
    column = tl.program_id(0) % tiles * BLOCK_Y + tl.arange(0, BLOCK_Y)
    of_chunk = tl.program_id(1).to(tl.int64) * chunks + chunk
    x = rows_of(x, batch, head, t[:, None], x_batch, x_time, x_head, ALIGNED)
    states += of_chunk * (X * Y) + column[None, :] * STATE_COLUMN
    scores += of_chunk * (CHUNK * CHUNK)
    result = tl.zeros((ROWS, BLOCK_Y), tl.float32)
    for start in tl.range(0, X, STEP, num_stages=STAGES):
        k = start + tl.arange(0, STEP)
        at_x, at_state = (t < time)[:, None], (k < X)[:, None]
        if X % STEP != 0:
            at_x &= (k < X)[None, :]
        if Y % BLOCK_Y != 0:
            at_state &= (column < Y)[None, :]
        a = tl.load(x + k[None, :], mask=at_x, other=0.0)
        b = tl.load(states + k[:, None] * STATE_ROW, mask=at_state, other=0.0)
        result = tl.dot(a.to(b.dtype), b, result, input_precision=PRECISION)

    rate = rate_of(log_decay, head)
    if age is not None:
        age += batch.to(tl.int64) * time
    if segment_start is not None:
        segment_start += batch.to(tl.int64) * time
    edge = elapsed(age, end if BACKWARD else begin, time)
    start_of_last = start_of(segment_start, end - 1)
    weight = weight_of(rate, segment_start, age, t, time, begin, edge, start_of_last, BACKWARD)
    result *= weight[:, None]

    if BACKWARD:
        from_j, to_j, row_stride, column_stride = first, end - begin, 1, CHUNK
    else:
        from_j, to_j, row_stride, column_stride = 0, first + ROWS, CHUNK, 1
    for start in tl.range(from_j, to_j, STEP, num_stages=STAGES):
        j = start + tl.arange(0, STEP)
        at_y = (begin + j < time)[:, None]
        if Y % BLOCK_Y != 0:
            at_y &= (column < Y)[None, :]
        a = tl.load(scores + i[:, None] * row_stride + j[None, :] * column_stride)
        rows = rows_of(y, batch, head, (begin + j)[:, None], y_batch, y_time, y_head, ALIGNED)
        b = tl.load(rows + column[None, :], mask=at_y, other=0.0)
        result = tl.dot(a, b, result, input_precision=PRECISION)
    place = out + (batch.to(tl.int64) * time + t[:, None]) * (HEADS * Y) + head * Y
    at_out = (t < time)[:, None] & (column < Y)[None, :]
    tl.store(place + column[None, :], result.to(out.dtype.element_ty), mask=at_out)
