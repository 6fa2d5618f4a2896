"""Rows: worked by hand once, then as a law."""

import numpy as np

from data.packing import IGNORED, Row, empty_row, make_row, pack_rows

BOS, EOS = 1, 2


def test_a_row_worked_by_hand() -> None:
    """The end of one document, a whole one, and the beginning of a third."""
    tokens = np.array([8, EOS, BOS, 9, EOS, BOS, 7], np.int32)
    row = make_row(tokens, tokens == BOS)
    assert row.segment_start.tolist() == [0, 0, 2, 2, 2, 5]
    assert row.labels.tolist() == [EOS, IGNORED, 9, EOS, IGNORED, 7]
    assert row.segment_start.dtype == np.int32 and row.labels.dtype == np.int64


def test_a_document_that_begins_with_the_next_row_is_no_target() -> None:
    tokens = np.array([8, 9, EOS, BOS], np.int32)
    row = make_row(tokens, tokens == BOS)
    assert row.segment_start.tolist() == [0, 0, 0]
    assert row.labels.tolist() == [9, EOS, IGNORED]


def test_every_token_of_a_document_is_a_target_exactly_once_for_any_length() -> None:
    rng = np.random.default_rng(0)
    documents = [
        np.array([BOS, *rng.integers(3, 1000, size), EOS], np.int32) for size in (0, 1, 5, 17, 4, 0)
    ]
    wanted = np.concatenate([ids[1:] for ids in documents]).tolist()
    total = sum(len(ids) for ids in documents)
    for length in range(1, total + 3):
        packed = pack_rows(documents, length, EOS)
        assert targets(packed) == wanted
        assert all(len(row.tokens) == length + 1 for row in packed)
        assert all(_inside_documents(row) for row in packed)


def test_an_empty_row_has_no_target() -> None:
    assert targets([empty_row(5, EOS)]) == []


def targets(packed: list[Row]) -> list[int]:
    """All labels that somebody has to predict, in order."""
    labels = np.concatenate([row.labels for row in packed])
    return labels[labels != IGNORED].tolist()


def _inside_documents(row: Row) -> bool:
    """Whether no token's segment reaches back over a <bos>."""
    return all(
        BOS not in row.tokens[row.segment_start[t] + 1 : t + 1]
        for t in range(len(row.labels))
        if row.labels[t] != IGNORED
    )
