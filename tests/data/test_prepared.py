"""Shards give the rows that the text gives, in the same order and from the same cursors; in an
order of their own they give each document once."""

import dataclasses
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.cache_folder import CacheFull, ShardFile
from data.config import DataConfig, OnBadShard, Order, Packing
from data.documents import TokenSource
from data.order import is_held_out
from data.packing import Row
from data.prepared import PreparedSource
from data.quarantine import BadShard, Failure, Quarantine
from data.streams import Cursor, rows
from data.tokenizer import Tokenizer
from tests.data.corpora import (
    KINDS,
    STREAMS,
    equal,
    make_documents,
    open_shards,
    open_text,
    prepare,
    write_corpus,
)


def two_epochs(
    source: TokenSource, stream: int, packing: Packing, start: Cursor | None = None
) -> list[tuple[Row, Cursor]]:
    """A stream's rows until the third epoch has begun."""
    first = start.row if start else 0
    made = rows(source, stream, STREAMS, 5, 32, packing, start, first)
    until = itertools.takewhile(lambda item: item[1].epoch < 2, made)
    return [(row, cursor) for row, cursor, _ in until]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_text_and_cursors_may_be_exchanged(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    config = write_corpus(kind, tmp_path / "text", ["", *make_documents(61), "x" * 900])
    index = prepare(config, tokenizer, tmp_path / "shards")
    assert len(index.shards) > 3
    text = open_text(config, tokenizer)
    shards = open_shards(config, tokenizer, tmp_path / "shards")
    for packing, stream in itertools.product(Packing, range(STREAMS)):
        expected, got = two_epochs(text, stream, packing), two_epochs(shards, stream, packing)
        assert len(expected) == len(got) > 10
        for (row, cursor), (wanted, wanted_cursor) in zip(got, expected, strict=True):
            assert equal(row, wanted) and cursor == wanted_cursor
        middle = len(got) * 2 // 3
        rest = two_epochs(shards, stream, packing, expected[middle][1])
        assert all(equal(a[0], b[0]) for a, b in zip(rest, expected[middle + 1 :], strict=True))
    assert shards.fingerprint() == text.fingerprint()
    held_out, wanted_held_out = shards.held_out(2000), text.held_out(2000)
    assert held_out.texts == wanted_held_out.texts and held_out.bytes == wanted_held_out.bytes
    for ids, wanted_ids in zip(held_out.ids, wanted_held_out.ids, strict=True):
        assert np.array_equal(ids, wanted_ids)


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> tuple[DataConfig, Path]:
    """One JSONL file of 61 documents as a dozen shards."""
    folder = tmp_path_factory.mktemp("prepared")
    config = write_corpus("jsonl", folder / "text", make_documents(61))
    prepare(config, tokenizer, folder / "shards", shard_bytes=800)
    return config, folder / "shards"


@pytest.mark.parametrize("num_streams", [1, 3, 4, 7, 16])
def test_an_order_of_their_own_serves_each_document_once_an_epoch(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer, num_streams: int
) -> None:
    config, out = prepared
    shards = open_shards(config, tokenizer, out, order=Order.shards)
    shards.check_streams(num_streams)
    wanted = Counter(text for text in make_documents(61) if not is_held_out(text, 0.2))
    orders = []
    for epoch in range(2):
        order = [
            tokenizer.decode(ids[1:-1].tolist())
            for stream in range(num_streams)
            for ids, _ in shards.encoded(stream, num_streams, epoch, 0)
            if len(ids)
        ]
        assert Counter(order) == wanted
        orders.append(order)
    assert orders[0] != orders[1]
    assert shards.fingerprint() != open_shards(config, tokenizer, out).fingerprint()


class Door:
    """Opens shards as they lie there and remembers which; some are broken, or there is no room."""

    def __init__(self, out: Path, room: int = 1000) -> None:
        self.out, self.room = out, room
        self.opened: list[str] = []
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.held = 0

    def open(self, name: str) -> ShardFile:
        if name in self.broken:
            raise BadShard(f"{name} is broken")
        if self.held == self.room:
            raise CacheFull("the cache is full of shards in use")
        self.opened.append(name)
        self.held += 1
        fd = os.open(self.out / name, os.O_RDONLY)
        return Counted(fd, os.fstat(fd).st_size).of(self)

    def source(self, config: DataConfig, tokenizer: Tokenizer, **changed: object) -> PreparedSource:
        settings = {"open_shard": self.open, "ahead": self.asked.extend} | changed
        return open_shards(config, tokenizer, self.out, **settings)


class Counted(ShardFile):
    """A file whose door knows when it is closed."""

    def of(self, door: Door) -> "Counted":
        self._door = door
        return self

    def close(self) -> None:
        super().close()
        self._door.held -= 1


@pytest.mark.parametrize("packing", Packing)
def test_a_shard_that_breaks_is_done_without_and_a_resume_does_the_same_again(
    packing: Packing, prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    door = Door(out)
    assert list(door.source(config, tokenizer).encoded(1, STREAMS, 0, 5))
    broken = set(door.opened[1::3])  # of those that the stream comes to
    settings = {"on_bad_shard": OnBadShard.quarantine}
    made = rows(door.source(config, tokenizer, **settings), 1, STREAMS, 5, 32, packing)
    whole = list(itertools.islice(made, 20))
    door.broken = broken  # within the first epoch, for good
    whole += itertools.islice(rows_from(door, config, tokenizer, packing, whole, []), 100)
    failures = [failure for *_, lost in whole for failure in lost]
    assert {failure.shard for failure in failures} == broken
    assert len(failures) == len(broken) > 2
    assert all((f.stream, f.why) == (1, f"{f.shard} is broken") for f in failures)
    for start in range(20, 110, 9):
        decided = [failure for *_, lost in whole[:start] for failure in lost]
        again = rows_from(door, config, tokenizer, packing, whole[:start], decided)
        for (row, cursor, _), (wanted, wanted_cursor, _) in zip(again, whole[start:], strict=False):
            assert equal(row, wanted) and cursor == wanted_cursor


def rows_from(
    door: Door,
    config: DataConfig,
    tokenizer: Tokenizer,
    packing: Packing,
    done: list[tuple[Row, Cursor, list[Failure]]],
    decided: list[Failure],
) -> Iterator[tuple[Row, Cursor, list[Failure]]]:
    """What follows those rows in a process that starts anew and is told the decisions so far."""
    kept = Quarantine(Failure(*json.loads(json.dumps(failure))) for failure in decided)
    settings = {"on_bad_shard": OnBadShard.quarantine, "quarantine": kept}
    source = door.source(config, tokenizer, **settings)
    return rows(source, 1, STREAMS, 5, 32, packing, done[-1][1], len(done))


def test_a_broken_shard_stops_a_run_that_was_not_told_to_go_on(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    door = Door(out)
    door.broken.add("shard-00000002.bin")
    with pytest.raises(BadShard, match="shard-00000002.bin is broken"):
        list(door.source(config, tokenizer).encoded(0, STREAMS, 0, 0))
    quarantining = door.source(config, tokenizer, on_bad_shard=OnBadShard.quarantine)
    with pytest.raises(RuntimeError, match="broken; its held-out documents are validated on"):
        quarantining.held_out(10**9)


def test_a_shard_cut_short_or_of_another_kind_is_a_bad_shard(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config, out = prepared
    shutil.copytree(out, tmp_path / "shards")
    for path in (tmp_path / "shards").glob("shard-*"):
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(BadShard, match="shard-0000000[0-9].bin is no token shard of version 1"):
        list(open_shards(config, tokenizer, tmp_path / "shards").encoded(0, STREAMS, 0, 0))


@pytest.mark.parametrize("order", Order)
def test_the_next_shards_are_asked_for_before_they_are_needed(
    order: Order, prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    door = Door(out)
    config = dataclasses.replace(config, shuffle_window=1)
    asked: set[str] = set()
    for number, _ in enumerate(door.source(config, tokenizer, order=order).encoded(0, 2, 0, 0)):
        assert number == 0 or set(door.opened[1:]) <= asked
        asked = set(door.asked)
    assert len(set(door.opened)) > 5


def test_a_resume_opens_no_shard_that_it_does_not_need(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    config = dataclasses.replace(config, shuffle_window=2)
    made = rows(open_shards(config, tokenizer, out, order=Order.shards), 0, 2, 5, 16)
    cursors = [cursor for _, cursor, _ in itertools.islice(made, 200)]
    assert cursors[-1].epoch > 0
    for cursor in cursors[::5]:
        door = Door(out)
        source = door.source(config, tokenizer, order=Order.shards)
        next(rows(source, 0, 2, 5, 16, Packing.cut, cursor, cursor.row))
        assert len(door.opened) < 3


def test_shards_are_closed_where_the_cache_has_no_room_for_more(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    wide, narrow = Door(out), Door(out, room=1)
    served = []
    for door in (wide, narrow):
        source = door.source(config, tokenizer, order=Order.shards)
        streams = (source.encoded(stream, 2, 1, 0) for stream in range(2))
        served.append([ids.tolist() for pair in zip(*streams, strict=False) for ids, _ in pair])
    assert served[0] == served[1] and len(narrow.opened) > len(wide.opened)


def test_too_few_documents_for_the_streams_are_refused_with_the_numbers(
    prepared: tuple[DataConfig, Path], tokenizer: Tokenizer
) -> None:
    config, out = prepared
    with pytest.raises(ValueError, match=r"has 61 documents, but each of data.streams=62 .*=61 or"):
        open_shards(config, tokenizer, out).check_streams(62)
