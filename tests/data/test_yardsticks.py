"""The yardsticks are what an independent count gives."""

import math
import zlib

import pytest

from data.tokenizer import Tokenizer
from data.yardsticks import compare, yardsticks


def test_unigram_is_the_entropy_per_byte(tokenizer: Tokenizer) -> None:
    """Four documents of one token each: half of all tokens <eos>, an eighth each of the others."""
    texts = ["a", "b", "c", "d"]
    assert all(len(tokenizer.encode(text)) == 1 for text in texts)
    bits = 8 * (0.5 * 1 + 4 * 0.125 * 3)
    assert math.isclose(yardsticks(texts, tokenizer)["unigram"], bits / 4)


def test_gzip_is_each_document_deflated_with_its_header(
    tokenizer: Tokenizer, library: list[str]
) -> None:
    texts = library[:5]
    size = sum(len(text.encode()) for text in texts)
    deflated = sum(len(zlib.compress(text.encode(), 9, wbits=31)) for text in texts)
    assert yardsticks(texts, tokenizer)["gzip"] == pytest.approx(8 * deflated / size)


def test_a_comparison_says_less_for_the_better_model(tokenizer: Tokenizer) -> None:
    texts = ["a", "b", "c", "d"]
    easy = yardsticks(texts, tokenizer)
    unigram = easy["unigram"]
    lines = compare(unigram * 0.75, texts, easy)
    assert "4 documents, 4 bytes" in lines[0]
    assert lines[2].endswith(f"{unigram:.3f} bits per byte: the model needs 25% less")
    assert compare(unigram * 1.1, texts, easy)[2].endswith("the model needs 10% more")
    assert "one document, 1 bytes" in compare(1.0, texts[:1], easy)[0]
