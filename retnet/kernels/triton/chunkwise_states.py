"""The scan of chunkwise retention as Triton kernels: the states between chunks, and, where
sequences are too few to fill a device, the joining of segments that were scanned side by side.

Forward and backward are one kernel on other operands. Letters: B batch, T time, H heads, N chunks
of C tokens, X and Y widths. Programs of axis 1 are heads of sequences, b * H + h.
"""

import triton
import triton.language as tl

from retnet.kernels.triton.decay import (
    carry_of,
    elapsed,
    rate_of,
    rows_of,
    start_of,
    weight_of,
)


@triton.jit
def states_kernel(
    x,
    y,
    log_decay,
    initial,
    segment_start,
    age,
    states,
    last,
    time,
    chunks,
    chunks_per_segment,
    x_batch,
    x_time,
    x_head,
    y_batch,
    y_time,
    y_head,
    HEADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    STEP: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """states [B, H, N, X, Y]: what comes into each chunk, S <- gamma^C S + sum_j gamma^(C-1-j) x_j
    y_j^T over its tokens; `last` [segments, B, H, X, Y] float32: what comes out of each segment.

    BACKWARD goes from the last chunk to the first, a token's weight being gamma^(j+1); states are
    then what comes into a chunk from later ones, the gradient of the state after it. `initial`
    [B, H, X, Y] float32 or None is where the first segment begins; the others begin with nothing.
    Axis 0: tiles of X, Y; axis 2: segments of some chunks.
    """
    tiles: tl.constexpr = tl.cdiv(Y, BLOCK_Y)
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    row = tl.program_id(0) // tiles * BLOCK_X + tl.arange(0, BLOCK_X)
    column = tl.program_id(0) % tiles * BLOCK_Y + tl.arange(0, BLOCK_Y)
    inside = (row < X)[:, None] & (column < Y)[None, :]
    tile = row[:, None] * Y + column[None, :]
    whole = tl.program_id(1).to(tl.int64) * (X * Y)
    rate = rate_of(log_decay, head)
    if age is not None:
        age += batch.to(tl.int64) * time
    if segment_start is not None:
        segment_start += batch.to(tl.int64) * time
    state = tl.zeros((BLOCK_X, BLOCK_Y), tl.float32)
    if initial is not None:
        if tl.program_id(2) == 0:
            state = tl.load(initial + whole + tile, mask=inside, other=0.0)
    first = tl.program_id(2) * chunks_per_segment
    for index in range(first, tl.minimum(first + chunks_per_segment, chunks)):
        chunk = chunks - 1 - index if BACKWARD else index
        begin = chunk * CHUNK
        end = tl.minimum(begin + CHUNK, time)
        place = states + (whole * chunks + chunk.to(tl.int64) * (X * Y))
        tl.store(place + tile, state.to(states.dtype.element_ty), mask=inside)
        state *= carry_of(rate, segment_start, age, begin, end, time)
        edge = elapsed(age, begin if BACKWARD else end, time)
        start_of_last = start_of(segment_start, end - 1)
        for step in tl.range(begin, end, STEP, num_stages=STAGES):
            t = step + tl.arange(0, STEP)
            weight = weight_of(
                rate, segment_start, age, t, time, begin, edge, start_of_last, not BACKWARD
            )
            at_x, at_y = (t < time)[None, :], (t < time)[:, None]
            if X % BLOCK_X != 0:
                at_x &= (row < X)[:, None]
            if Y % BLOCK_Y != 0:
                at_y &= (column < Y)[None, :]
            rows = rows_of(x, batch, head, t[None, :], x_batch, x_time, x_head, ALIGNED)
            a = tl.load(rows + row[:, None], mask=at_x, other=0.0)
            rows = rows_of(y, batch, head, t[:, None], y_batch, y_time, y_head, ALIGNED)
            b = tl.load(rows + column[None, :], mask=at_y, other=0.0)
            # y is weighed, not x: the left operand of a product goes from shared memory as it is
            b = (b * weight[:, None]).to(a.dtype)
            state = tl.dot(a, b, state, input_precision=PRECISION)
    if last is not None:
        place = last + whole + tl.program_id(2).to(tl.int64) * tl.num_programs(1) * (X * Y)
        tl.store(place + tile, state, mask=inside)


@triton.jit
def join_kernel(
    log_decay,
    segment_start,
    age,
    states,
    last,
    final,
    time,
    chunks,
    chunks_per_segment,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Adds to the states of every segment but the first what earlier segments hand it, and writes
    the state after them all to `final` [B, H, X, Y] where that is wanted.

    states [B, H, N, X, Y] and last [segments, B, H, X, Y] as `states_kernel` leaves them.
    Axis 0: blocks of the SIZE = X * Y elements; axis 2: segments from the second one on, and one
    more for `final`.
    """
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < SIZE
    whole = tl.program_id(1).to(tl.int64) * SIZE
    rate = rate_of(log_decay, head)
    if age is not None:
        age += batch.to(tl.int64) * time
    if segment_start is not None:
        segment_start += batch.to(tl.int64) * time
    segments = tl.num_programs(2)
    mine = tl.program_id(2) + 1
    state = tl.zeros((BLOCK,), tl.float32)
    for segment in range(mine):
        begin, end = _ends(segment, chunks, chunks_per_segment, CHUNK, time, BACKWARD)
        carry = carry_of(rate, segment_start, age, begin, end, time)
        state = state * carry + tl.load(last + whole + element, mask=inside, other=0.0)
        last += tl.num_programs(1).to(tl.int64) * SIZE
    if mine == segments:
        if final is not None:
            tl.store(final + whole + element, state, mask=inside)
    else:
        first = mine * chunks_per_segment
        from_begin, from_end = _ends(mine, chunks, chunks_per_segment, CHUNK, time, BACKWARD)
        for index in range(first, tl.minimum(first + chunks_per_segment, chunks)):
            if BACKWARD:
                chunk = chunks - 1 - index
                begin, end = tl.minimum((chunk + 1) * CHUNK, time), from_end
            else:
                chunk = index
                begin, end = from_begin, chunk * CHUNK
            carry = carry_of(rate, segment_start, age, begin, end, time)
            place = states + whole * chunks + chunk.to(tl.int64) * SIZE + element
            own = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            tl.store(place, (own + state * carry).to(states.dtype.element_ty), mask=inside)


@triton.jit
def _ends(segment, chunks, chunks_per_segment, CHUNK: tl.constexpr, time, BACKWARD: tl.constexpr):
    """The first token of a segment of the scan, and the one after its last."""
    first = segment * chunks_per_segment
    after = tl.minimum(first + chunks_per_segment, chunks)
    if BACKWARD:
        first, after = chunks - after, chunks - first
    return first * CHUNK, tl.minimum(after * CHUNK, time)
