"""Rows follow from their number alone; a cursor only saves the way there."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.order import is_held_out
from data.packing import Row
from data.sources import DataConfig, SourceKind, open_source
from data.streams import Cursor, rows
from data.tokenizer import Tokenizer
from tests.data.corpora import KINDS, STREAMS, make_documents, stream_documents, write_corpus

FRACTION = 0.2


def equal(a: Row, b: Row) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_epoch_hold_every_training_document_once(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = make_documents(61)
    source = open_source(write_corpus(kind, tmp_path, documents))
    served: list[Counter[str]] = [Counter(), Counter()]
    for stream in range(STREAMS):
        epochs = stream_documents(source, tokenizer, stream, 2, FRACTION, 32)
        for epoch, texts in enumerate(epochs):
            served[epoch].update(texts)
    wanted = Counter(text for text in documents if not is_held_out(text, FRACTION))
    assert served == [wanted, wanted]
    assert 40 < wanted.total() < 61


def test_every_cursor_leads_to_the_rows_that_counting_leads_to(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = open_source(write_corpus("files", tmp_path, make_documents(23)))

    def from_row(start: Cursor | None, first_row: int, count: int) -> list[tuple[Row, Cursor]]:
        made = rows(source, tokenizer, 1, STREAMS, 7, 48, FRACTION, start, first_row)
        return list(itertools.islice(made, count))

    whole = from_row(None, 0, 60)
    assert whole[-1][1].epoch >= 3, "the law is to be tried over the ends of epochs"
    for number, (_, cursor) in enumerate(whole[:-3], 1):
        kept = Cursor(*json.loads(json.dumps(cursor)))
        assert kept.row == number
        for start, first_row in ((kept, number), (None, number), (kept, number + 2)):
            again = from_row(start, first_row, 1)
            assert equal(again[0][0], whole[first_row][0]) and again[0][1] == whole[first_row][1]


def test_neighboring_rows_share_one_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = open_source(write_corpus("files", tmp_path, make_documents(23)))
    made = list(itertools.islice(rows(source, tokenizer, 0, 4, 0, 16, FRACTION), 50))
    for (row, _), (following, _) in itertools.pairwise(made):
        assert row.tokens[-1] == following.tokens[0]
        assert len(row.tokens) == 17


def test_a_document_sees_no_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = open_source(write_corpus("files", tmp_path, make_documents(23)))
    inside = boundaries = 0
    for row, _ in itertools.islice(rows(source, tokenizer, 0, 4, 0, 64, FRACTION), 40):
        for t, start in enumerate(row.segment_start):
            assert tokenizer.bos_id not in row.tokens[start + 1 : t + 1]
            assert start == 0 or row.tokens[start] == tokenizer.bos_id
            ends = row.tokens[t] == tokenizer.eos_id
            assert row.labels[t] == (-100 if ends else row.tokens[t + 1])
            boundaries, inside = boundaries + ends, inside + (start > 0)
    assert boundaries > 10 and inside > 100


def test_empty_documents_are_passed_over(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = ["", *make_documents(9), "", ""]
    source = open_source(write_corpus("files", tmp_path, documents))
    served = Counter(
        text
        for stream in range(STREAMS)
        for epoch in stream_documents(source, tokenizer, stream, 1, 0.0, 8)
        for text in epoch
    )
    assert served == Counter(filter(None, documents))


def test_a_stream_without_text_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("")
    config = DataConfig(kind=SourceKind.files, files=str(tmp_path / "*.txt"), streams=4)
    made = rows(open_source(config), tokenizer, 2, 4, 0, 8, FRACTION)
    with pytest.raises(ValueError, match="stream 2 of data.streams=4 found no text to train on"):
        next(made)
