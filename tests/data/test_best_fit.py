"""Best fit: nothing is lost or predicted twice, no short document is split, rows are well used."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.best_fit import fill_rate, fill_row, in_words, plan, split_by_cut
from data.packing import IGNORED

BOS, EOS = 1, 2
quickly = settings(max_examples=40, deadline=None, derandomize=True)
lengths_of_documents = st.lists(st.integers(2, 60), min_size=1, max_size=40)
lengths_of_rows = st.integers(1, 30)


@quickly
@given(lengths_of_documents, lengths_of_rows)
def test_every_token_is_predicted_once_and_within_its_document(
    lengths: list[int], length: int
) -> None:
    # each token names its document and its place in it, so that none can be mistaken
    documents = [1000 * (i + 1) + np.arange(size) for i, size in enumerate(lengths)]
    predicted: Counter[int] = Counter()
    for pieces in plan(lengths, length):
        row = fill_row(pieces, documents, length, padding=EOS)
        assert len(row.tokens) == length + 1
        for t, label in enumerate(row.labels):
            if label == IGNORED:
                continue
            predicted[int(label)] += 1
            assert label == row.tokens[t + 1] == row.tokens[t] + 1
            since = row.tokens[row.segment_start[t] : t + 1]
            assert np.array_equal(since, np.arange(since[0], since[0] + len(since)))
    assert predicted == Counter(int(token) for ids in documents for token in ids[1:])


@quickly
@given(lengths_of_documents, lengths_of_rows)
def test_only_documents_longer_than_a_row_are_split(lengths: list[int], length: int) -> None:
    pieces = Counter(piece.document for row in plan(lengths, length) for piece in row)
    for document, size in enumerate(lengths):
        assert pieces[document] == 1 if size <= length + 1 else pieces[document] > 1


@quickly
@given(lengths_of_documents, lengths_of_rows)
def test_no_two_rows_would_fit_into_one(lengths: list[int], length: int) -> None:
    """So that at most one row is not more than half full."""
    used = [sum(piece.length for piece in row) for row in plan(lengths, length)]
    assert all(0 < size <= length + 1 for size in used)
    assert all(a + b > length + 1 for a, b in itertools.combinations(used, 2))
    assert fill_rate(lengths, length) == sum(used) / (len(used) * (length + 1))


def test_a_block_worked_by_hand() -> None:
    """Rows of 5 places for documents of 3, 2, 9 and 4 tokens: the long one fills a row and starts
    the next with the token it ended on."""
    rows = plan([3, 2, 9, 4], 4)
    assert [[tuple(piece) for piece in row] for row in rows] == [
        [(2, 0, 5)],
        [(2, 4, 9)],
        [(3, 0, 4)],
        [(0, 0, 3), (1, 0, 2)],
    ]
    documents = [np.array([BOS, *range(10, 8 + size), EOS]) for size in (3, 2, 9, 4)]
    last = fill_row(rows[3], documents, 4, padding=EOS)
    assert last.tokens.tolist() == [BOS, 10, EOS, BOS, EOS]
    assert last.labels.tolist() == [10, EOS, IGNORED, EOS]
    assert last.segment_start.tolist() == [0, 0, 0, 3]
    padded = fill_row(rows[2], documents, 4, padding=EOS)
    assert padded.tokens.tolist() == [BOS, 10, 11, EOS, EOS]
    assert padded.labels.tolist() == [10, 11, EOS, IGNORED]


def test_the_words_have_what_cutting_would_split() -> None:
    """End to end, 3 + 2 + 9 + 4 tokens are cut at 4, 8, 12 and 16: the second document is the only
    one in which no target is on another side of a cut than its <bos>."""
    assert split_by_cut([3, 2, 9, 4], 4) == 0.5
    assert in_words([3, 2, 9, 4], 4) == (
        "best_fit: 5.0% of the places are padding and 25% of the documents are split; cut would "
        "have no padding and would split 50%"
    )
