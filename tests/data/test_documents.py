"""Documents: whatever the text holds is text, or is refused by a rule that has a name."""

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, SourceKind
from data.documents import LONGEST_LINE, Refused, TokenizedText, checked, encode_document, in_words
from data.order import Layout, is_held_out
from data.sources import open_source
from data.tokenizer import Tokenizer
from tests.data.corpora import LONGEST, make_documents, open_text, write_corpus

ODD = [
    "nul \0 in it",
    "<s> and </s> and <unk>",
    "\u2581 \u2581",
    " ",
    "\ufeffx",
    "a\r\nb\rc",
    "\U0010ffff",
]


class Texts:
    """A source of these texts in their order, whatever the stream."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        return iter(self._texts[skip:])

    def in_order(self) -> Iterator[tuple[int, str]]:
        return ((0, text) for text in self._texts)

    def documents_if_known(self) -> int:
        return len(self._texts)

    def layout(self, counts: list[int]) -> Layout:
        return Layout(True, np.array(counts))

    def validation_documents(self) -> Iterator[str]:
        return iter(self._texts)

    def fingerprint(self) -> str:
        return "texts"

    def describe(self) -> str:
        return "texts"

    def check_streams(self, num_streams: int) -> None:
        pass


def tokenized(tokenizer: Tokenizer, *texts: str, longest: int = LONGEST) -> TokenizedText:
    return TokenizedText(Texts(*texts), tokenizer, fraction=0.0, longest=longest)


@pytest.mark.parametrize("text", ODD, ids=repr)
def test_odd_text_is_text_and_no_command(text: str, tokenizer: Tokenizer) -> None:
    ((ids, failure),) = tokenized(tokenizer, text).encoded(0, 1, 0, 0)
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id and failure is None
    inside = ids[1:-1].tolist()
    assert tokenizer.decode(inside) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(inside)


def test_what_is_refused_keeps_its_ordinal_and_is_counted_by_reason(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("a", "", Refused("not_utf8"), "half \ud800", "é" * 51, "é" * 50, "x" * 101, "b")
    source = tokenized(tokenizer, *texts, longest=100)
    with caplog.at_level(logging.INFO):
        kept = [len(ids) > 0 for ids, _ in source.encoded(3, 4, 2, 0)]
        assert kept == [True, False, False, False, False, True, False, True]
        assert [len(ids) > 0 for ids, _ in source.encoded(3, 4, 2, 0, 5)] == kept[5:]
    assert caplog.records[0].getMessage() == (
        "stream 3, epoch 2: passed over documents: 1 empty, 2 not UTF-8, 2 too long"
    )


def test_a_refused_document_is_empty_and_knows_why_in_other_processes_too() -> None:
    refused = pickle.loads(pickle.dumps(Refused("too_long")))
    assert refused == "" and refused.reason == "too_long"
    assert checked(refused, LONGEST) == (b"", "too_long")
    assert in_words(dict.fromkeys(("empty", "not_utf8", "too_long"), 1200)) == (
        "1,200 empty, 1,200 not UTF-8, 1,200 too long"
    )


@pytest.mark.parametrize("extra", [-1, 0, 1, 2 * LONGEST_LINE])
def test_a_line_without_end_is_encoded_in_parts_and_decodes_to_itself(
    extra: int, tokenizer: Tokenizer
) -> None:
    text = "short\n" + ("état 😀 \u2581 self  " * LONGEST_LINE)[: LONGEST_LINE + extra] + "\nend"
    ids = encode_document(tokenizer, text)
    assert tokenizer.decode(ids[1:-1].tolist()) == text


class Watched:
    """A tokenizer that remembers how long the texts are that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)

    def encode(self, text: str) -> list[int]:
        self.lengths.append(len(text))
        return self._tokenizer.encode(text)


def test_an_enormous_line_is_refused_before_it_reaches_the_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A line of 20 MB among short ones, where 1 MB is allowed; one of 1 MB goes in parts."""
    with (tmp_path / "a.jsonl").open("w") as file:
        for text in ("small", "x " * 10_000_000, "y " * 500_000):
            file.write(json.dumps({"text": text}) + "\n")
    config = DataConfig(
        kind=SourceKind.dataset,
        dataset="json",
        data_files=[str(tmp_path / "a.jsonl")],
        streams=1,
        shuffle_window=1,
        longest_document=1_000_000,
    )
    watched = Watched(tokenizer)
    text = TokenizedText(
        open_source(config), watched, fraction=0.0, longest=config.longest_document
    )
    sizes = [len(ids) for ids, _ in text.encoded(0, 1, 0, 0)]
    assert 0 < sizes[0] < 9 and sizes[1] == 0 and sizes[2] > 1000
    assert watched.lengths == [5] + [LONGEST_LINE] * 10


@pytest.mark.parametrize("kind", ("files", "jsonl"))
def test_held_out_documents_are_those_the_content_picks(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = make_documents(101)
    held_out = open_text(write_corpus(kind, tmp_path, documents), tokenizer).held_out(10**6)
    assert held_out.texts == [text for text in documents if is_held_out(text, 0.2)]
    assert 5 < len(held_out.texts) < 40
    assert held_out.bytes == sum(len(text.encode()) for text in held_out.texts)
    assert [tokenizer.decode(ids[1:-1].tolist()) for ids in held_out.ids] == held_out.texts


def test_held_out_text_is_whole_documents_within_its_limit(tokenizer: Tokenizer) -> None:
    source = tokenized(tokenizer, "x" * 30, "", "two", "three", "y" * 30, "six")
    assert source.held_out(9).texts == ["two", "three"]
    with pytest.raises(ValueError, match=r"no held-out document among 6: raise data.validation_f"):
        source.held_out(2)
