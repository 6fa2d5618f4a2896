"""What the retention kernels share: powers of the decay, and where a head's matrix lies.

Every weight is gamma to the number of tokens between two places of one stream, never above one.
Not here: kernels.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def elapsed(age, t, time):
    """Tokens of the stream before index t, which may be past the end. age [T] counts tokens of the
    stream up to and with each index; None where each index is one."""
    t = tl.minimum(t, time)
    if age is not None:
        t = tl.load(age + t - 1, mask=t > 0, other=0)
    return t


@triton.jit
def power(rate, distance):
    """gamma^distance for distance >= 0, which garbage at masked places may violate."""
    return tl.exp2(rate * tl.maximum(distance, 0).to(tl.float32))


@triton.jit
def exact_power(rate, distance):
    """The same for one number, in float64: carries multiply up over thousands of tokens, and the
    hardware's exp2 is off by the same few units each time."""
    return tl.exp2(rate.to(tl.float64) * distance.to(tl.float64)).to(tl.float32)


@triton.jit
def weight_of(
    rate, segment_start, age, t, time, begin, edge, start_of_last, UNTIL_END: tl.constexpr
):
    """What is left, at token t of a chunk that begins at `begin`, of the state before the chunk;
    UNTIL_END: what is left of token t at the chunk's end. Nothing, where a document begins in
    between. `edge`: the stream's tokens before the chunk, or before its end; `start_of_last`: the
    start of its last token's document."""
    own = elapsed(age, t + 1, time)
    weight = power(rate, edge - own if UNTIL_END else own - edge)
    if segment_start is not None:
        start = tl.load(segment_start + t, mask=t < time, other=0)
        seen = start == start_of_last if UNTIL_END else start < begin
        weight = tl.where(seen, weight, 0.0)
    return weight


@triton.jit
def start_of(segment_start, t):
    """The start of token t's document; of no use where there is one document."""
    if segment_start is not None:
        t = tl.load(segment_start + t)
    return t


@triton.jit
def carry_of(rate, segment_start, age, begin, end, time):
    """What is left of a state across the tokens [begin, end): nothing, where a document begins."""
    carry = exact_power(rate, elapsed(age, end, time) - elapsed(age, begin, time))
    if segment_start is not None:
        start = tl.load(segment_start + end - 1, mask=end > begin, other=-1)
        carry = tl.where((start < begin) | (end <= begin), carry, 0.0)
    return carry


@triton.jit
def rate_of(log_decay, head):
    """The logarithm of gamma to base 2."""
    return tl.load(log_decay + head).to(tl.float32) * LOG2_E


@triton.jit
def rows_of(x, batch, head, t, x_batch, x_time, x_head, ALIGNED: tl.constexpr):
    """Where row t (a block) of one head of x [B, T, H, X] begins, strides counted in ALIGNED
    elements: what Triton itself sees of a stride is whether 16 divides it, and without that it
    would load one element at a time."""
    place = batch.to(tl.int64) * x_batch + head.to(tl.int64) * x_head + t.to(tl.int64) * x_time
    return x + place * ALIGNED
