"""Shards: what is written is read, whatever is asked for together; what is damaged says so."""

import os
from pathlib import Path

import numpy as np
import pytest

from data.cache_folder import ShardFile
from data.documents import REASONS
from data.quarantine import BadShard
from data.shards import FOOTER, TABLE, Encoded, Shard, ShardWriter, join, reason_number, token_type

VOCABULARIES = (1 << 16, (1 << 16) + 1)
Facts = tuple[int, int, int]


def make(count: int, vocab_size: int) -> tuple[list[np.ndarray], list[Facts]]:
    """Documents of 0 to 40 tokens, an empty one having been refused, and what the table says."""
    rng = np.random.default_rng(count)
    documents, facts = [], []
    for number in range(count):
        refused = number % 7 == 3
        size = 0 if refused else int(rng.integers(2, 40))
        documents.append(rng.integers(0, vocab_size, size))
        digest = int(rng.integers(0, 1 << 63)) * 2 + 1
        facts.append((digest, 3 * size, reason_number("too_long") if refused else 0))
    return documents, facts


def write(
    folder: Path, documents: list[np.ndarray], facts: list[Facts], vocab_size: int, block: int
) -> list[str]:
    """Shards of 800 bytes, given `block` documents at a time; the names of them."""
    dtype = token_type(vocab_size)
    writer = ShardWriter(folder, dtype, shard_bytes=800)
    entries = []
    for first in range(0, len(documents), block):
        part = slice(first, first + block)
        entries += writer.add(join(documents[part], facts[part], dtype))
    entries += writer.close()
    assert [entry.name for entry in entries] == sorted(os.listdir(folder))
    assert all(entry.size == (folder / entry.name).stat().st_size for entry in entries)
    assert all(entry.tokens * dtype.itemsize >= 800 for entry in entries[:-1])
    assert sum(entry.documents for entry in entries) == len(documents)
    return [entry.name for entry in entries]


def open_shard(path: Path) -> Shard:
    return Shard(path.name, ShardFile(os.open(path, os.O_RDONLY), path.stat().st_size))


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_what_is_written_is_read(vocab_size: int, tmp_path: Path) -> None:
    documents, facts = make(150, vocab_size)
    first = 0
    for name in write(tmp_path, documents, facts, vocab_size, block=13):
        shard = open_shard(tmp_path / name)
        assert shard.checksum() is not None
        rng = np.random.default_rng(first)
        for count in (1, 2, 5, shard.documents):
            chosen = np.sort(rng.permutation(shard.documents)[:count])
            starts, records = shard.records(chosen)
            got = shard.read(starts, records["end"].astype(np.int64))
            for ordinal, ids, record in zip(chosen, got, records, strict=True):
                assert np.array_equal(ids, documents[first + ordinal]) and ids.dtype == np.int32
                seen = tuple(int(record[name]) for name in ("digest", "bytes", "reason"))
                assert seen == facts[first + ordinal]
        first += shard.documents
        shard.close()
    assert first == len(documents)


def test_documents_far_apart_are_found_too(tmp_path: Path) -> None:
    """Where two records lie so far apart that nothing between them is read."""
    count = 1000
    encoded = Encoded(np.arange(count, dtype="<u2"), np.zeros(count, TABLE))
    encoded.table["end"] = np.arange(1, count + 1)
    writer = ShardWriter(tmp_path, token_type(count), 1 << 20)
    writer.add(encoded)
    (entry,) = writer.close()
    shard = open_shard(tmp_path / entry.name)
    chosen = np.array([0, 7, count - 1])
    starts, records = shard.records(chosen)
    got = shard.read(starts, records["end"].astype(np.int64))
    assert [ids.tolist() for ids in got] == [[0], [7], [count - 1]]
    shard.close()


def test_shards_do_not_depend_on_how_the_documents_come(tmp_path: Path) -> None:
    documents, facts = make(90, 1000)
    written = []
    for block in (1, 7, 90):
        folder = tmp_path / str(block)
        folder.mkdir()
        names = write(folder, documents, facts, 1000, block)
        written.append([(name, (folder / name).read_bytes()) for name in names])
    assert written[0] == written[1] == written[2] and len(written[0]) > 2


def test_tokens_are_two_bytes_where_that_is_enough() -> None:
    assert [token_type(size).itemsize for size in VOCABULARIES] == [2, 4]


def test_every_reason_has_a_number_of_its_own() -> None:
    assert {reason_number(reason) for reason in (None, *REASONS)} == set(range(len(REASONS) + 1))


def test_a_wrong_byte_changes_the_checksum_or_is_found(tmp_path: Path) -> None:
    documents, facts = make(20, 1000)
    path = tmp_path / write(tmp_path, documents, facts, 1000, 20)[0]
    raw = path.read_bytes()
    shard = open_shard(path)
    assert shard.checksum() is not None
    shard.close()
    for place in (0, len(raw) // 2, len(raw) - FOOTER.size - 1, len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        shard = open_shard(path)
        assert shard.checksum() is None
        shard.close()


@pytest.mark.parametrize("kept", [0, 10, FOOTER.size, -1])
def test_a_shard_cut_short_is_no_shard(kept: int, tmp_path: Path) -> None:
    documents, facts = make(20, 1000)
    path = tmp_path / write(tmp_path, documents, facts, 1000, 20)[0]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadShard, match="shard-00000000.bin "):
        open_shard(path)


def test_a_shard_that_shrinks_while_it_is_open_is_a_bad_shard(tmp_path: Path) -> None:
    documents, facts = make(20, 1000)
    path = tmp_path / write(tmp_path, documents, facts, 1000, 20)[0]
    shard = open_shard(path)
    starts, records = shard.records(np.arange(shard.documents))
    os.truncate(path, 100)
    with pytest.raises(BadShard, match="shard-00000000.bin ends before byte"):
        shard.read(starts, records["end"].astype(np.int64))
    shard.close()
