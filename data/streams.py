"""Canonical streams: the endless sequence of rows that each one is, and where a row starts in it.

Global row i is row i div S of stream i mod S, for S = data.streams, whoever reads it. A stream lays
the training documents of epoch 0, 1, 2, ... end to end. This file does not know about ranks.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.order import is_held_out
from data.packing import Row, document_begins, make_row
from data.sources import Source
from data.tokenizer import Tokenizer

# A stream of few documents may hold all of them out in some epoch, but not in this many.
EPOCHS_WITHOUT_TEXT = 100


class Cursor(NamedTuple):
    """Where a row starts in its stream: a shortcut, since counting rows finds the same place."""

    epoch: int = 0
    document: int = 0
    """Ordinal of the document in this stream's epoch, held-out and refused ones counted."""
    token: int = 0
    """Offset within the document as encoded, <bos> being 0."""
    row: int = 0
    """Number of the row in the stream."""


class _Encoded(NamedTuple):
    epoch: int
    document: int
    ids: np.ndarray  # int32 [n]


def rows(
    source: Source,
    tokenizer: Tokenizer,
    stream: int,
    num_streams: int,
    seed: int,
    sequence_length: int,
    fraction: float,
    start: Cursor | None = None,
    first_row: int = 0,
) -> Iterator[tuple[Row, Cursor]]:
    """Rows first_row, first_row + 1, ... of one stream without end, each with the cursor after it.

    `fraction` is the share of held-out documents, which are passed over. `start` may be the cursor
    of any row up to first_row. ValueError when the stream has no text to train on.
    """
    cursor = start or Cursor()
    assert cursor.row <= first_row, "a cursor beyond the wanted row cannot be read backwards"
    supply = _encoded(
        source, tokenizer, stream, num_streams, seed, fraction, cursor.epoch, cursor.document
    )
    held: deque[_Encoded] = deque()  # the documents that reach into the next row
    offset, available = cursor.token, -cursor.token
    for row in itertools.count(cursor.row):
        while available < sequence_length + 1:
            held.append(next(supply))
            available += len(held[-1].ids)
        made = _front(held, offset, sequence_length + 1) if row >= first_row else None
        offset += sequence_length
        available -= sequence_length
        while offset >= len(held[0].ids):
            offset -= len(held.popleft().ids)
        if made is not None:
            yield made, Cursor(held[0].epoch, held[0].document, offset, row + 1)


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


def _encoded(
    source: Source,
    tokenizer: Tokenizer,
    stream: int,
    num_streams: int,
    seed: int,
    fraction: float,
    epoch: int,
    skip: int,
) -> Iterator[_Encoded]:
    """The stream's training documents as <bos> tokens <eos>, epoch after epoch."""
    barren = 0
    for number in itertools.count(epoch):
        barren += 1
        document = skip - 1
        texts = source.documents(stream, num_streams, number, seed, skip)
        for document, text in enumerate(texts, skip):
            if text and not is_held_out(text, fraction):
                barren = 0
                ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
                yield _Encoded(number, document, np.array(ids, np.int32))
        if document < 0 or barren >= EPOCHS_WITHOUT_TEXT:
            raise ValueError(
                f"stream {stream} of data.streams={num_streams} found no text to train on in epoch "
                f"{number}: set a smaller data.streams or give more documents"
            )
        skip = 0
