"""What retention costs at least: FLOPs and bytes as pure functions of the chunk and a head's
widths, and the time a machine of given rates needs for them.

Counted as in a few tiled products a chunk: scores, the scan over states, outputs, and their mirror
images backward. C is the chunk, K and V are the widths of a head; a tile above the diagonal of the
scores is skipped, tiles being `GRANULE` tokens wide, so that f = (C + GRANULE) / 2C of them is
left; states between chunks are stored in the operands' width. Not here: anything measured.
"""

from collections.abc import Iterable
from dataclasses import dataclass

GRANULE = 64


@dataclass(frozen=True)
class Work:
    """FLOPs, and bytes read or written."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def seconds(self, flops_rate: float, bytes_rate: float) -> float:
        """On a machine that does so many FLOPs and moves so many bytes a second, at once."""
        return max(self.flops / flops_rate, self.bytes / bytes_rate)


def chunk_of(key_dim: int) -> int:
    """The chunk that costs least for heads of this width, or nearly: 256 wide, 128 narrow."""
    return 256 if key_dim > 128 else 128


def forward(chunk: int, key_dim: int, value_dim: int, size: int = 2) -> Work:
    """Of a token and head, forward: q, k, v are read and o written, k and v once more for the scan,
    each state is written and read. size: bytes of an element."""
    inner, state = _inner(chunk), key_dim * value_dim
    flops = inner * (key_dim + value_dim) + 4 * state
    values = 2 * (key_dim + value_dim) + (key_dim + value_dim)
    return Work(flops, size * (values + 2 * state / chunk))


def backward(
    chunk: int, key_dim: int, value_dim: int, size: int = 2, recompute: bool = True
) -> Work:
    """Of a token and head, backward: q, k, v, do are read and dq, dk, dv written, two scans read
    their operands once more, two sets of states are written and read. `recompute`: the scores and
    states of the forward pass are made again; they were never stored."""
    inner, state = _inner(chunk), key_dim * value_dim
    flops = inner * 2 * (key_dim + value_dim) + 8 * state
    if recompute:
        flops += inner * key_dim + 2 * state
    values = 2 * (key_dim + value_dim) + (2 * key_dim + value_dim) + 2 * (key_dim + value_dim)
    return Work(flops, size * (values + 4 * state / chunk))


def launches(chunk: int, key_dim: int, value_dim: int, size: int = 2) -> dict[str, Work]:
    """Of a token and head, by launch, in the order in which they come: what each has to do where
    scores and states are stored once and every operand is read once a launch."""
    inner, scores = _inner(chunk), _inner(chunk) / 2
    state, stored = key_dim * value_dim, key_dim * value_dim / chunk

    def product(flops: float, *elements: float) -> Work:
        return Work(flops, size * sum(elements))

    def outputs(
        summed: int, wide: int
    ) -> Work:  # [C, summed] x [summed, wide] + scores x [., wide]
        return product(inner * wide + 2 * state, summed, stored, scores, 2 * wide)

    return {
        "scores of q, k": product(inner * key_dim, 2 * key_dim, scores),
        "states": product(2 * state, key_dim + value_dim, stored),
        "o": outputs(key_dim, value_dim),
        "scores of do, v": product(inner * value_dim, 2 * value_dim, scores),
        "gradients of states": product(2 * state, key_dim + value_dim, stored),
        "dq": outputs(value_dim, key_dim),
        "dk": outputs(value_dim, key_dim),
        "dv": outputs(key_dim, value_dim),
    }


def token(key_dim: int, value_dim: int) -> Work:
    """Of one token and head when decoding: the float32 state is read and written once."""
    state = key_dim * value_dim
    return Work(5.0 * state, 2 * 4.0 * state)


def floor(phases: Iterable[Work], flops_rate: float, bytes_rate: float) -> float:
    """Seconds for one phase after the other."""
    return sum(phase.seconds(flops_rate, bytes_rate) for phase in phases)


def _inner(chunk: int) -> float:
    """FLOPs of a token in a product inside its chunk, for each column: 2 f C."""
    return chunk + min(GRANULE, chunk)
