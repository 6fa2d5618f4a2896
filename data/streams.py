"""Canonical streams: the endless sequence of rows that each one is, and where a row starts in it.

Global row i is row i div S of stream i mod S, for S = data.streams, whoever reads it. A stream lays
the training documents of epoch 0, 1, 2, ... end to end. This file does not know about ranks, nor
whether the documents come from text or from shards.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.best_fit import PACKING_WINDOW, fill_row, in_words, plan
from data.config import Packing
from data.documents import TokenSource
from data.order import permutation
from data.packing import Row, document_begins, make_row
from data.quarantine import Failure

# A stream of few documents may hold all of them out in some epoch, but not in this many.
EPOCHS_WITHOUT_TEXT = 100


class Cursor(NamedTuple):
    """Where a row starts in its stream: a shortcut, since counting rows finds the same place."""

    epoch: int = 0
    document: int = 0
    """Ordinal of the document in this stream's epoch, held-out and refused ones counted; with
    best_fit, of the first one of the row's block."""
    token: int = 0
    """Offset within the document as encoded, <bos> being 0; with best_fit, row in its block."""
    row: int = 0
    """Number of the row in the stream."""


class _Encoded(NamedTuple):
    epoch: int
    document: int
    ids: np.ndarray  # int [n], n > 0


class _Supply:
    """The training documents of a stream from some place on, epoch after epoch."""

    def __init__(
        self, source: TokenSource, stream: int, num_streams: int, seed: int, start: Cursor
    ) -> None:
        self._source, self._stream, self._num_streams = source, stream, num_streams
        self._seed, self._start = seed, start
        self.failures: list[Failure] = []
        """Decisions to go on without a shard since somebody took them away."""

    def __iter__(self) -> Iterator[_Encoded]:
        """ValueError when the stream has no text to train on."""
        barren, skip = 0, self._start.document
        for epoch in itertools.count(self._start.epoch):
            barren += 1
            ordinal = skip - 1
            found = self._source.encoded(self._stream, self._num_streams, epoch, self._seed, skip)
            for ordinal, (ids, failure) in enumerate(found, skip):
                if failure is not None:
                    self.failures.append(failure)
                if len(ids):
                    barren = 0
                    yield _Encoded(epoch, ordinal, ids)
            if barren >= EPOCHS_WITHOUT_TEXT:
                raise ValueError(
                    f"stream {self._stream} of data.streams={self._num_streams} found no text to "
                    f"train on in epoch {epoch}: set a smaller data.streams or give more documents"
                )
            skip = 0

    def take_failures(self) -> list[Failure]:
        """The decisions made since the last time, handed over."""
        taken, self.failures = self.failures, []
        return taken


def rows(
    source: TokenSource,
    stream: int,
    num_streams: int,
    seed: int,
    sequence_length: int,
    packing: Packing = Packing.cut,
    start: Cursor | None = None,
    first_row: int = 0,
) -> Iterator[tuple[Row, Cursor, list[Failure]]]:
    """Rows first_row, first_row + 1, ... of one stream without end, each with the cursor after it
    and the decisions to go on without a shard that were made on the way to it.

    `start` may be the cursor of any row up to first_row. ValueError when the stream has no text to
    train on.
    """
    cursor = start or Cursor()
    assert cursor.row <= first_row, "a cursor beyond the wanted row cannot be read backwards"
    supply = _Supply(source, stream, num_streams, seed, cursor)
    if packing is Packing.cut:
        made = _cut(supply, sequence_length, cursor, first_row)
    else:
        made = _packed(supply, sequence_length, cursor, first_row, (seed, stream))
    for row, after in made:
        yield row, after, supply.take_failures()


def packing_in_words(
    source: TokenSource, stream: int, num_streams: int, seed: int, sequence_length: int
) -> str:
    """What best_fit costs and gains on the first block of one stream, as a line for the log."""
    supply = iter(_Supply(source, stream, num_streams, seed, Cursor()))
    lengths = [len(document.ids) for document in itertools.islice(supply, PACKING_WINDOW)]
    return in_words(lengths, sequence_length)


def _cut(
    supply: _Supply, sequence_length: int, cursor: Cursor, first_row: int
) -> Iterator[tuple[Row, Cursor]]:
    """Rows of documents laid end to end, neighbors sharing one token."""
    documents = iter(supply)
    held = deque([next(documents)])  # the documents that reach into the next row
    offset = _offset(cursor, held[0])
    available = len(held[0].ids) - offset
    for row in itertools.count(cursor.row):
        while available < sequence_length + 1:
            held.append(next(documents))
            available += len(held[-1].ids)
        made = _front(held, offset, sequence_length + 1) if row >= first_row else None
        offset += sequence_length
        available -= sequence_length
        while offset >= len(held[0].ids):
            offset -= len(held.popleft().ids)
        if made is not None:
            yield made, Cursor(held[0].epoch, held[0].document, offset, row + 1)


def _offset(cursor: Cursor, first: _Encoded) -> int:
    """cursor.token, unless the document it counts in is gone with its shard: then the next one
    begins at its beginning."""
    return cursor.token if (first.epoch, first.document) == cursor[:2] else 0


def _front(held: deque[_Encoded], offset: int, count: int) -> Row:
    """The row of `count` tokens that begins `offset` tokens into the first held document."""
    tokens, begins = [], []
    for document in held:
        part = document.ids[offset : offset + count]
        tokens.append(part)
        begins.append(document_begins(len(part), whole=offset == 0))
        offset, count = 0, count - len(part)
        if count == 0:
            break
    return make_row(np.concatenate(tokens), np.concatenate(begins))


def _packed(
    supply: _Supply, sequence_length: int, cursor: Cursor, first_row: int, key: tuple[int, int]
) -> Iterator[tuple[Row, Cursor]]:
    """Rows of best fit, block by block, a block's rows in the seeded order of `key`."""
    seed, stream = key
    row = cursor.row
    for number, block in enumerate(_blocks(supply)):
        epoch, document, first_ids = block[0]
        ids = [encoded.ids for encoded in block]
        planned = plan([len(one) for one in ids], sequence_length)
        order = permutation(len(planned), seed, epoch, stream, document)
        done = _offset(cursor, block[0]) if number == 0 else 0
        for place, index in enumerate(order[done:], done + 1):
            row += 1
            if row > first_row:
                after = Cursor(epoch, document, place, row)
                if place == len(order):
                    after = Cursor(epoch, block[-1].document + 1, 0, row)
                yield fill_row(planned[index], ids, sequence_length, int(first_ids[-1])), after


def _blocks(supply: _Supply) -> Iterator[list[_Encoded]]:
    """Up to PACKING_WINDOW documents of one epoch at a time."""
    for _, epoch in itertools.groupby(supply, key=lambda encoded: encoded.epoch):
        while block := list(itertools.islice(epoch, PACKING_WINDOW)):
            yield block
