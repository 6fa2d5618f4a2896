"""Rows: how documents, laid end to end as tokens, are cut into pieces of one length.

A document is <bos> tokens <eos>. Row r of a stream is tokens[r*L : r*L + L + 1]: neighbors share
one token, so every token is predicted exactly once. Nothing here knows where tokens come from.
"""

import itertools
from typing import NamedTuple

import numpy as np

IGNORED = -100


class Row(NamedTuple):
    """One training row of L targets."""

    tokens: np.ndarray
    """int32 [L + 1]"""
    segment_start: np.ndarray
    """int32 [L]: index in the row where the token's document begins; 0 when it began in an earlier
    row, since no state is carried between rows."""
    labels: np.ndarray
    """int64 [L]: the next token, or -100 where that is the <bos> of another document."""


def make_row(tokens: np.ndarray, begins: np.ndarray) -> Row:
    """A row from tokens int32 [L + 1] and begins bool [L + 1], true where a document begins."""
    length = len(tokens) - 1
    begun = np.flatnonzero(begins[1:]) + 1
    labels = tokens[1:].astype(np.int64)
    labels[begun - 1] = IGNORED
    segment_start = np.zeros(length, np.int32)
    # Few documents are in a row: a loop over them is a third of what numpy takes over the tokens.
    for start, stop in itertools.pairwise([*begun.tolist(), length]):
        segment_start[start:stop] = start
    return Row(tokens, segment_start, labels)


def document_begins(count: int, whole: bool = True) -> np.ndarray:
    """bool [count] for count tokens of one document: true for the first one, if it is a <bos>."""
    begins = np.zeros(count, bool)
    begins[:1] = whole
    return begins


def pack_rows(documents: list[np.ndarray], length: int, padding: int) -> list[Row]:
    """All rows of a closed list of encoded documents, each int32 [n].

    Every token but the very first is the target of exactly one row, <bos> tokens excepted; the last
    row is filled with `padding` tokens that nobody has to predict.
    """
    tokens = np.concatenate(documents)
    begins = np.concatenate([document_begins(len(ids)) for ids in documents])
    count = -(-(len(tokens) - 1) // length)
    missing = count * length + 1 - len(tokens)
    tokens = np.concatenate([tokens, np.full(missing, padding, np.int32)])
    begins = np.concatenate([begins, np.zeros(missing, bool)])
    rows = [
        make_row(tokens[start : start + length + 1], begins[start : start + length + 1])
        for start in range(0, count * length, length)
    ]
    if missing:
        rows[-1].labels[-missing:] = IGNORED
    return rows


def empty_row(length: int, padding: int) -> Row:
    """A row that asks for nothing: `padding` everywhere, every label -100."""
    return Row(
        np.full(length + 1, padding, np.int32),
        np.zeros(length, np.int32),
        np.full(length, IGNORED, np.int64),
    )
