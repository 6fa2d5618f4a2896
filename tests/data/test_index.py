"""The index: what is written is read, and what a stranger wrote leads nowhere."""

import json
from typing import Any

import numpy as np
import pytest

from data.cache import ShardEntry
from data.index import Index
from data.order import Layout
from data.shards import shard_name

WHOLE = Index(
    dtype="u2",
    bytes=3000,
    refused={"empty": 2},
    rules={"longest_document": 100, "longest_line": 10},
    source={"fingerprint": "ab", "words": "some files"},
    tokenizer={
        "fingerprint": "cd",
        "vocab_size": 300,
        "files": {"tokenizer.json": {"sha256": "ef"}},
    },
    layout=Layout(False, np.array([10, 5]), np.array([6, 4, 5])),
    shards=[ShardEntry(shard_name(i), 200, f"{i}" * 32, 5, 70) for i in range(3)],
)


def test_what_is_written_is_read() -> None:
    again = Index.parse(WHOLE.dump().encode(), "x")
    assert again.dump() == WHOLE.dump()
    assert (again.documents, again.tokens, again.size) == (15, 210, 600)
    assert again.layout.coarse.tolist() == [10, 5] and again.layout.fine.tolist() == [6, 4, 5]
    assert again.shards == WHOLE.shards and "3 shards, 15 documents, 210 uint16" in again.describe()


FIRST, *REST = json.loads(WHOLE.dump())["shards"]
TOKENIZER = WHOLE.tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"documents": 14},
        {"dtype": "f4"},
        {"layout": []},
        {"shards": REST},
        {"shards": [FIRST | {"name": "../shard-00000000.bin"}, *REST]},
        {"shards": [FIRST | {"xxh3_128": "../../x"}, *REST]},
        {"shards": [FIRST | {"size": "1"}, *REST]},
        {"shards": [FIRST | {"size": -1}, *REST]},
        {"shards": [FIRST | {"more": 1}, *REST]},
        {"tokenizer": TOKENIZER | {"files": {"../x": {}}}},
        {"tokenizer": TOKENIZER | {"files": {".x": {}}}},
        {"tokenizer": TOKENIZER | {"fingerprint": "../x"}},
        {"tokenizer": TOKENIZER | {"files": {"x": 5}}},
        {"rules": {}},
        {"layout": {"unit": "shard", "coarse": [2**70], "fine": None}},
    ],
    ids=repr,
)
def test_an_index_that_is_none_is_refused(change: dict[str, Any]) -> None:
    raw = json.dumps(json.loads(WHOLE.dump()) | change).encode()
    with pytest.raises(ValueError, match=r"data.path=x: index.json is no index of retnet-shards"):
        Index.parse(raw, "x")


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b"{}", b"\xff"])
def test_what_is_no_json_of_ours_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"data.path=x: index.json is no index of"):
        Index.parse(raw, "x")


def test_a_folder_without_an_index_was_not_finished() -> None:
    def read(name: str) -> bytes:
        raise FileNotFoundError(name)

    with pytest.raises(ValueError, match=r"data.path=x has no index.json: either .* not finished"):
        Index.load(read, "x")
