"""Which of several sources a row comes from: a function of the seed and the row's number alone.

Nothing is drawn at random and nothing is remembered: a Weyl sequence of the row's global number,
which fills the unit interval more evenly than chance, is laid over the sources' shares. Any stretch
of N global rows has each source's share of N, but for a few rows. Reading the sources is not here.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data.config import DataConfig
from data.documents import TokenSource

T = TypeVar("T")
# 2^64 divided by the golden ratio, to the next odd number: its multiples modulo 2^64 fill the
# circle as evenly as multiples of any one number can.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROWS_AT_ONCE = 1 << 20


class Feed(NamedTuple):
    """One source of a mixture, opened."""

    name: str
    """Its name in data.sources; empty where there is only one source."""
    source: TokenSource
    parts: dict[str, Any]
    """What, besides the run's own settings, decides its documents and their order; JSON-able."""


class Mixture:
    """The sources of all rows; sources have numbers here."""

    def __init__(self, stages: list[tuple[int, list[float]]], seed: int) -> None:
        """stages: [(global row from which on the weights hold, weight of each source)], in the
        order of rows, the first from row 0 on."""
        assert stages[0][0] == 0
        self.num_sources = len(stages[0][1])
        phase = hashlib.blake2b(repr(("mixture", seed)).encode(), digest_size=8).digest()
        self._phase = np.uint64(int.from_bytes(phase, "big"))
        self._starts = np.array([position for position, _ in stages], np.int64)
        self._bounds = [_bounds(weights) for _, weights in stages]

    def choices(self, first: int, stride: int, count: int) -> np.ndarray:
        """Source numbers int64 [count] of the global rows first, first + stride, ..."""
        rows = first + stride * np.arange(count, dtype=np.int64)
        points = self._phase + rows.astype(np.uint64) * GOLDEN
        begins = [0, *np.searchsorted(rows, self._starts[1:]).tolist(), count]
        chosen = np.empty(count, np.int64)
        for (numbers, bounds), (begin, end) in zip(
            self._bounds, itertools.pairwise(begins), strict=True
        ):
            chosen[begin:end] = numbers[np.searchsorted(bounds, points[begin:end], "right")]
        return chosen

    def rows_before(self, stream: int, num_streams: int, row: int, start: int = 0) -> np.ndarray:
        """How many of a stream's rows start .. row - 1 are of each source: int64 [num_sources]."""
        counts = np.zeros(self.num_sources, np.int64)
        for begin in range(start, row, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, row - begin)
            chosen = self.choices(stream + num_streams * begin, num_streams, count)
            counts += np.bincount(chosen, minlength=self.num_sources)
        return counts


def _bounds(weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the sources that have a weight, where in 0 .. 2^64 each but the first begins)."""
    numbers = [number for number, weight in enumerate(weights) if weight > 0]
    exact = [Fraction(weights[number]) for number in numbers]
    sums = list(itertools.accumulate(exact))
    bounds = [int(part * 2**64 / sums[-1]) for part in sums[:-1]]
    return np.array(numbers, np.int64), np.array(bounds, np.uint64)


def mixture_of(config: DataConfig, names: list[str], seed: int) -> Mixture:
    """The mixture that data.sources and data.stages describe, with the sources numbered as `names`
    is ordered."""
    if not config.sources:
        return Mixture([(0, [1.0])], seed)
    at = [[source.name for source in config.sources].index(name) for name in names]
    return Mixture([(row, [weights[i] for i in at]) for row, weights in config.weights()], seed)


def mixed_rows(
    make: Callable[[int, int], Iterator[T]],
    mixture: Mixture,
    stream: int,
    num_streams: int,
    first_row: int,
    counts: list[int],
) -> Iterator[tuple[int, T]]:
    """(source, row) of one stream's rows from the first_row-th on, without end.

    `counts`: how many rows of each source the stream had before. `make(source, row)` begins to read
    the stream of one source at that row; it is called when a source's first row is due.
    """
    reading: dict[int, Iterator[T]] = {}
    # First few at once, so that a stream's first row does not wait for many choices.
    for block in itertools.count():
        size = min(64 << block, 4096)
        chosen = mixture.choices(stream + num_streams * first_row, num_streams, size)
        first_row += size
        for source in chosen.tolist():
            if source not in reading:
                reading[source] = make(source, counts[source])
            yield source, next(reading[source])
