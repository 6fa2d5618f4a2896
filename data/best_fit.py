"""Best-fit packing: rows that split no document that fits into one, at the price of some padding.

The documents of a block are placed longest first, each into the fullest row that has room for it.
It plans with lengths and fills in tokens; blocks and their order are data/streams.py's.
"""

import bisect
from typing import NamedTuple

import numpy as np

from data.packing import IGNORED, Row, make_row

PACKING_WINDOW = 256
"""Training documents of a stream that are packed together."""


class Piece(NamedTuple):
    """Tokens start .. stop - 1 of a document: all of them, or a part of one longer than a row."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many places of a row it takes."""
        return self.stop - self.start


def plan(lengths: list[int], sequence_length: int) -> list[list[Piece]]:
    """The pieces of each row of sequence_length + 1 places, for documents of these many tokens.

    Every token but a document's first is once the successor of another one in its piece. A document
    longer than a row gives full rows, of which neighbors share one token, and its rest is placed
    like a short document.
    """
    size = sequence_length + 1
    rows: list[list[Piece]] = []
    rests: list[Piece] = []
    for document, length in enumerate(lengths):
        start = 0
        while length - start > size:
            rows.append([Piece(document, start, start + size)])
            start += sequence_length
        rests.append(Piece(document, start, length))
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for piece in sorted(rests, key=lambda piece: -piece.length):
        found = bisect.bisect_left(room, (piece.length, 0))
        if found < len(room):
            free, row = room.pop(found)
        else:
            free, row = size, len(rows)
            rows.append([])
        rows[row].append(piece)
        bisect.insort(room, (free - piece.length, row))
    return rows


def fill_row(
    pieces: list[Piece], documents: list[np.ndarray], sequence_length: int, padding: int
) -> Row:
    """One planned row from the documents' tokens, each int [n]; free places hold `padding`, belong
    to no document and are nobody's target."""
    tokens = np.full(sequence_length + 1, padding, np.int32)
    begins = np.zeros(sequence_length + 1, bool)
    used = 0
    for piece in pieces:
        tokens[used : used + piece.length] = documents[piece.document][piece.start : piece.stop]
        begins[used] = True
        used += piece.length
    begins[used : used + 1] = True
    row = make_row(tokens, begins)
    row.labels[used:] = IGNORED
    return row


def fill_rate(lengths: list[int], sequence_length: int) -> float:
    """Share of the places of rows that hold a token, for documents of these many tokens."""
    rows = plan(lengths, sequence_length)
    used = sum(piece.length for pieces in rows for piece in pieces)
    return used / (len(rows) * (sequence_length + 1))


def split_by_cut(lengths: list[int], sequence_length: int) -> float:
    """Share of the documents that cutting the stream would spread over more rows than one."""
    ends = np.cumsum(lengths)
    first, last = (ends - lengths) // sequence_length, (ends - 2) // sequence_length
    return float(np.mean(first != last))


def in_words(lengths: list[int], sequence_length: int) -> str:
    """What best fit costs and gains on documents of these many tokens, as one line."""
    free = 1 - fill_rate(lengths, sequence_length)
    split = np.mean(np.array(lengths) > sequence_length + 1)
    cut = split_by_cut(lengths, sequence_length)
    return (
        f"best_fit: {free:.1%} of the places are padding and {split:.0%} of the documents are "
        f"split; cut would have no padding and would split {cut:.0%}"
    )
