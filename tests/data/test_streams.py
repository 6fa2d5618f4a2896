"""Rows follow from their number alone; a cursor only saves the way there."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig, Packing, SourceKind
from data.order import is_held_out
from data.packing import IGNORED, Row
from data.sources import open_source
from data.streams import Cursor, packing_in_words, rows
from data.tokenizer import Tokenizer
from tests.data.corpora import (
    KINDS,
    STREAMS,
    equal,
    make_documents,
    open_text,
    stream_documents,
    training_counts,
    write_corpus,
)

FRACTION = 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_epoch_hold_every_training_document_once(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = make_documents(61)
    config = write_corpus(kind, tmp_path, documents)
    source, text = open_source(config), open_text(config, tokenizer)
    served: list[Counter[str]] = [Counter(), Counter()]
    for stream in range(STREAMS):
        counts = training_counts(source, stream, 2, FRACTION)
        epochs = stream_documents(text, counts, tokenizer, stream, 32)
        for epoch, texts in enumerate(epochs):
            served[epoch].update(texts)
    wanted = Counter(text for text in documents if not is_held_out(text, FRACTION))
    assert served == [wanted, wanted]
    assert 40 < wanted.total() < 61


@pytest.mark.parametrize("packing", Packing)
def test_every_cursor_leads_to_the_rows_that_counting_leads_to(
    packing: Packing, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    text = open_text(write_corpus("files", tmp_path, make_documents(23)), tokenizer)

    def from_row(start: Cursor | None, first_row: int, count: int) -> list[tuple[Row, Cursor]]:
        made = rows(text, 1, STREAMS, 7, 48, packing, start, first_row)
        return [(row, cursor) for row, cursor, _ in itertools.islice(made, count)]

    whole = from_row(None, 0, 60)
    assert whole[-1][1].epoch >= 3, "the law is to be tried over the ends of epochs"
    for number, (_, cursor) in enumerate(whole[:-3], 1):
        kept = Cursor(*json.loads(json.dumps(cursor)))
        assert kept.row == number
        for start, first_row in ((kept, number), (None, number), (kept, number + 2)):
            again = from_row(start, first_row, 1)
            assert equal(again[0][0], whole[first_row][0]) and again[0][1] == whole[first_row][1]


def test_neighboring_rows_share_one_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = open_text(write_corpus("files", tmp_path, make_documents(23)), tokenizer)
    made = list(itertools.islice(rows(text, 0, 4, 0, 16), 50))
    for (row, *_), (following, *_) in itertools.pairwise(made):
        assert row.tokens[-1] == following.tokens[0]
        assert len(row.tokens) == 17


@pytest.mark.parametrize("packing", Packing)
def test_a_document_sees_no_other(packing: Packing, tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = open_text(write_corpus("files", tmp_path, make_documents(23)), tokenizer)
    inside = boundaries = 0
    for row, *_ in itertools.islice(rows(text, 0, 4, 0, 64, packing), 40):
        for t, start in enumerate(row.segment_start):
            assert tokenizer.bos_id not in row.tokens[start + 1 : t + 1]
            if row.labels[t] != IGNORED:
                assert row.labels[t] == row.tokens[t + 1]
                assert row.tokens[t] != tokenizer.eos_id
                assert t + 1 == 64 or row.segment_start[t + 1] == start
            boundaries += row.tokens[t] == tokenizer.eos_id
            inside += start > 0
    assert boundaries > 10 and inside > 100


def test_best_fit_predicts_every_token_of_an_epoch_once_and_says_what_it_costs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """One stream, two epochs: what is predicted are the documents without their <bos>."""
    config = write_corpus("files", tmp_path, make_documents(41), streams=1)
    text = open_text(config, tokenizer)
    wanted = Counter(
        int(token) for ids, _ in text.encoded(0, 1, 0, 0) for token in ids[1:] if len(ids)
    )
    served = [Counter[int](), Counter[int]()]
    epoch = 0
    for row, cursor, _ in rows(text, 0, 1, 0, 32, Packing.best_fit):
        served[epoch].update(row.labels[row.labels != IGNORED].tolist())
        if served[epoch].total() == wanted.total():
            epoch += 1
            if epoch == 2:
                break
            assert cursor.token == 0 and cursor.row > 1
    assert served == [wanted, wanted]
    assert "of the places are padding" in packing_in_words(text, 0, 1, 0, 32)


def test_a_stream_without_text_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("")
    config = DataConfig(kind=SourceKind.files, files=str(tmp_path / "*.txt"), streams=4)
    with pytest.raises(ValueError, match="stream 2 of data.streams=4 found no text to train on"):
        next(rows(open_text(config, tokenizer), 2, 4, 0, 8))


def test_an_epoch_in_which_a_stream_gets_nothing_is_passed_over(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Two of eight files are empty; in some epoch one stream of four has just these two."""
    for number in range(8):
        text = json.dumps({"text": f"some text of file {number}"}) + "\n"
        (tmp_path / f"{number}.jsonl").write_text("" if number < 2 else text)
    files = [str(tmp_path / "*.jsonl")]
    config = DataConfig(SourceKind.dataset, dataset="json", data_files=files, streams=4)
    source = open_source(config)
    drawn = [[*source.documents(s, 4, e, 0)] for e in range(40) for s in range(4)]
    assert [] in drawn, "no epoch tries it"
    text = open_text(config, tokenizer)
    for stream in range(4):
        assert len([*itertools.islice(rows(text, stream, 4, 0, 8), 60)]) == 60
