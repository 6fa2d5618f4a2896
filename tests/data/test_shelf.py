"""What a shelf says of shards that are not as their index says, or do not fit into the cache."""

import dataclasses
import logging
from pathlib import Path

import pytest

from data.config import DataConfig, Order
from data.shelf import Shelf
from data.tokenizer import Tokenizer
from tests.data.corpora import make_documents, prepare, write_corpus
from tests.data.servers import Place, make_place


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    config = write_corpus("files", tmp_path / "text", make_documents(30))
    prepare(config, tokenizer, tmp_path / "out")
    return tmp_path / "out"


def served(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = make_place("http", "shelf", monkeypatch)
    for path in prepared.rglob("*"):
        if path.is_file():
            place.put(path.relative_to(prepared).as_posix(), path.read_bytes())
    return place


def test_the_tokenizer_comes_with_the_shards_and_is_kept(
    prepared: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = served(prepared, monkeypatch)
    shelf = Shelf(DataConfig(cache=str(tmp_path / "cache")), place.address)
    for _ in range(2):
        got = shelf.tokenizer(tmp_path / "cache")
        assert got.fingerprint == tokenizer.fingerprint
        assert got.encode("return x") == tokenizer.encode("return x")
    assert place.reads("tokenizer/tokenizer.model") == 1
    place.server.faults.reset()


def test_another_tokenizer_s_files_under_the_same_index_are_refused(
    prepared: Path, tmp_path: Path
) -> None:
    with (prepared / "tokenizer" / "tokenizer.model").open("ab") as file:
        file.write(b"\0")
    shelf = Shelf(DataConfig(cache=str(tmp_path / "cache")), str(prepared))
    with pytest.raises(ValueError, match=r"tokenizer.model of .* is not what index.json says"):
        shelf.tokenizer(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tokenizers").iterdir())


def test_a_store_whose_shards_are_read_all_at_once_and_do_not_fit_is_warned_of(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = served(prepared, monkeypatch)
    small = DataConfig(cache=str(tmp_path / "cache"), cache_gigabytes=1e-6)
    for config, address, warned in (
        (small, place.address, True),
        (dataclasses.replace(small, order=Order.shards), place.address, False),
        (small, str(prepared), False),
        (DataConfig(cache=str(tmp_path / "cache")), place.address, False),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            Shelf(config, address).warn_of_thrashing(config)
        assert ("take data.order=shards" in caplog.text) == warned
    place.server.faults.reset()
