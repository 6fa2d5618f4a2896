"""Order is a pure function: permutations are complete, repeatable and different by address, and a
layout gives every document to one stream once an epoch, as the sources of text do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import Layout, is_held_out, permutation, whole_shards
from data.sources import open_source
from tests.data.corpora import KINDS, make_documents, write_corpus

quickly = settings(max_examples=40, deadline=None, derandomize=True)
numbers = st.integers(0, 2**40)


@quickly
@given(count=st.integers(0, 300), key=st.lists(numbers, min_size=1, max_size=4))
def test_a_permutation_has_every_index_once(count: int, key: list[int]) -> None:
    assert np.array_equal(np.sort(permutation(count, *key)), np.arange(count))
    assert np.array_equal(permutation(count, *key), permutation(count, *key))


def test_the_same_address_gives_the_same_order_and_another_one_another() -> None:
    addresses = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (2**40, 0), (0, 0, 1)]
    orders = {tuple(permutation(50, *address)) for address in addresses}
    assert len(orders) == len(addresses)
    assert all(tuple(permutation(50, *address)) in orders for address in addresses)


def test_the_order_is_the_one_of_earlier_releases() -> None:
    """A change here would break the resume of every run that exists."""
    assert permutation(8, 17, 2).tolist() == [5, 0, 4, 2, 6, 1, 3, 7]


def test_about_the_wanted_fraction_is_held_out() -> None:
    texts = [f"document {i}" for i in range(10_000)]
    assert 150 < sum(is_held_out(text, 0.02) for text in texts) < 250
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert all(is_held_out(text, 1.0) for text in texts)


@st.composite
def layouts(draw: Callable[..., object]) -> Layout:
    """Files, or shards of which each is one or several smaller ones."""
    if draw(st.booleans()):
        return Layout(True, np.array([draw(st.integers(0, 200))]))
    parts = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=40))
    coarse = np.array([sum(part) for part in parts], np.int64)
    fine = np.array([count for part in parts for count in part], np.int64)
    return Layout(False, coarse, fine if draw(st.booleans()) else None)


@quickly
@given(layout=layouts(), num_streams=st.integers(1, 12), epoch=st.integers(0, 3), seed=numbers)
def test_streams_share_out_every_document_of_an_epoch_once(
    layout: Layout, num_streams: int, epoch: int, seed: int
) -> None:
    streams = [serve(layout, stream, num_streams, epoch, seed) for stream in range(num_streams)]
    assert sorted(sum(streams, [])) == list(range(layout.documents))
    if layout.fits(num_streams) and layout.by_document:
        assert all(streams)


@quickly
@given(layout=layouts(), num_streams=st.integers(1, 5), window=st.integers(1, 9), data=st.data())
def test_skipping_is_the_same_as_reading_on(
    layout: Layout, num_streams: int, window: int, data: st.DataObject
) -> None:
    whole = serve(layout, 0, num_streams, 2, 7, window)
    skip = data.draw(st.integers(0, len(whole) + 2))
    assert serve(layout, 0, num_streams, 2, 7, window, skip) == whole[skip:]
    for block in layout.blocks(0, num_streams, 2, 7, window, skip):
        assert 0 < len(block) <= window


@quickly
@given(layout=layouts(), num_streams=st.integers(1, 12), window=st.integers(1, 9))
def test_windows_shuffle_no_document_further_than_their_width(
    layout: Layout, num_streams: int, window: int
) -> None:
    if layout.by_document:
        return
    before = [i for share in layout.shares(1 % num_streams, num_streams, 0, 0) for i in share]
    after = serve(layout, 1 % num_streams, num_streams, 0, 0, window)
    assert sorted(after) == sorted(before)
    assert all(abs(after.index(i) - place) < window for place, i in enumerate(before))


def test_streams_take_whole_shards_only_where_these_share_out_well() -> None:
    assert whole_shards(8, 4) and whole_shards(17, 4) and not whole_shards(6, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_orders_documents_as_the_source_of_text_does(kind: str, tmp_path: Path) -> None:
    source = open_source(write_corpus(kind, tmp_path, make_documents(53)))
    in_order = list(source.in_order())
    counts = np.bincount([shard for shard, _ in in_order]).tolist()
    layout = source.layout(counts)
    texts = [text for _, text in in_order]
    assert texts == list(source.validation_documents()) and layout.documents == 53
    for num_streams in (1, 3, 4, 6):
        for stream in range(num_streams):
            for epoch, skip in ((0, 0), (1, 3)):
                ordinals = serve(layout, stream, num_streams, epoch, 5, 8, skip)
                wanted = list(source.documents(stream, num_streams, epoch, 5, skip))
                assert [texts[i] for i in ordinals] == wanted


def serve(
    layout: Layout,
    stream: int,
    num_streams: int,
    epoch: int,
    seed: int,
    window: int = 8,
    skip: int = 0,
) -> list[int]:
    """One stream's ordinals."""
    blocks = layout.blocks(stream, num_streams, epoch, seed, window, skip)
    return [int(ordinal) for block in blocks for ordinal in block]
