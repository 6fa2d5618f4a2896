"""Order by arithmetic: permutations, layouts and the held-out split, functions of numbers and text.

This is not a shuffling buffer and holds no state: the same numbers give the same order in every
process, on every machine and with every version of numpy. Documents are only counted here.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# With fewer shards per stream than this, streams that get one shard more would run too far ahead.
SHARDS_PER_STREAM = 4


def permutation(count: int, *key: int) -> np.ndarray:
    """The seeded order of `count` things: int64 [count], a permutation of 0 .. count - 1.

    `key` is the address of this permutation, e.g. (seed, epoch). It is hashed, since numpy's
    SeedSequence takes (1, 2) and (1, 2, 0) for the same. Raw Philox words are sorted instead of
    calling numpy's own shuffle, because numpy promises that raw words never change between versions
    and promises no such thing for `Generator.permutation`.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(words, kind="stable")


# All streams of an epoch take their shares of one order, which is long where documents are files.
_shared_permutation = functools.lru_cache(maxsize=2)(permutation)


def content_digest(text: bytes) -> int:
    """A number in 0 .. 2^64 - 1 that a document's UTF-8 bytes decide."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def held_out_below(fraction: float) -> int:
    """Documents whose content_digest() lies below this are held out; 0 .. 2^64."""
    return math.ceil(fraction * 2**64)


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: its content alone decides.

    Twice the same text falls on the same side, whatever its name, place or epoch.
    `fraction` is the expected share of held-out documents, 0 for none.
    """
    return content_digest(text.encode()) < held_out_below(fraction)


def whole_shards(num_shards: int, num_streams: int) -> bool:
    """Whether streams take whole shards; if not, each reads all and keeps every S-th document."""
    return num_shards % num_streams == 0 or num_shards >= SHARDS_PER_STREAM * num_streams


@dataclass(frozen=True)
class Layout:
    """How documents, numbered in a source's own order, are shuffled: singly, or in whole shards
    that are then shuffled within windows."""

    by_document: bool
    coarse: np.ndarray
    """int64 [n]: documents in each shard; one entry, all of them, where by_document."""
    fine: np.ndarray | None = None
    """int64 [m]: documents in each smaller shard, where shards can be split, as by row groups."""

    @property
    def documents(self) -> int:
        """How many there are."""
        return int(self.coarse.sum())

    def blocks(
        self, stream: int, num_streams: int, epoch: int, seed: int, window: int, skip: int = 0
    ) -> Iterator[np.ndarray]:
        """Ordinals int64 [<= window] of one stream's epoch from its skip-th document on, in
        training order, a window at a time."""
        if self.by_document:
            order = _shared_permutation(self.documents, seed, epoch)[stream::num_streams]
            for start in range(skip, len(order), window):
                yield order[start : start + window]
            return
        shares = self.shares(stream, num_streams, epoch, seed)
        number, done = divmod(skip, window)
        for block in _windows(shares, window, number):
            if done < len(block):
                yield block[permutation(len(block), seed, epoch, stream, number)[done:]]
            number, done = number + 1, 0

    def shares(self, stream: int, num_streams: int, epoch: int, seed: int) -> list[range]:
        """What the stream takes of each shard before the windows, in its order, empty shares left
        out: whole shards where there are enough of them, else every num_streams-th document."""
        assert not self.by_document
        counts = self._units(num_streams)
        ends = np.cumsum(counts)
        order = permutation(len(counts), seed, epoch)
        if whole_shards(len(counts), num_streams):
            mine = order[stream::num_streams]
            made = [range(int(ends[i] - counts[i]), int(ends[i])) for i in mine]
        else:
            before = np.cumsum(counts[order]) - counts[order]  # documents of the epoch before it
            offsets = (stream - before) % num_streams
            made = [
                range(int(ends[i] - counts[i] + offset), int(ends[i]), num_streams)
                for i, offset in zip(order, offsets, strict=True)
            ]
        return [share for share in made if share]

    def fits(self, num_streams: int) -> bool:
        """Whether there is enough to give each of so many streams a part of every epoch."""
        if not self.by_document and whole_shards(len(self._units(num_streams)), num_streams):
            return True
        return self.documents >= num_streams

    def _units(self, num_streams: int) -> np.ndarray:
        """int64 [n]: documents in each of the shards that are shared out over so many streams."""
        if self.fine is None or whole_shards(len(self.coarse), num_streams):
            return self.coarse
        return self.fine


def _windows(shares: list[range], window: int, first: int) -> Iterator[np.ndarray]:
    """The numbers of some ranges, end to end, in arrays of `window`, from the first-th array on."""
    skip = first * window
    parts: list[np.ndarray] = []
    held = 0
    for share in shares:
        if skip >= len(share):
            skip -= len(share)
            continue
        rest = share[skip:]
        skip = 0
        while rest:
            take, rest = rest[: window - held], rest[window - held :]
            parts.append(np.arange(take.start, take.stop, take.step))
            held += len(take)
            if held == window:
                yield np.concatenate(parts)
                parts, held = [], 0
    if parts:
        yield np.concatenate(parts)
