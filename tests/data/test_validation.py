"""Every target of every set is scored once over all ranks."""

import dataclasses
from pathlib import Path

import pytest
import torch

from data.config import DataConfig, MixtureSource, SourceKind
from data.loader import Loader
from data.opening import open_loader, open_places
from data.order import is_held_out
from data.packing import IGNORED
from data.share import Share
from data.tokenizer import Tokenizer
from tests.data.corpora import make_documents, stack, write_corpus

DOCUMENTS = {"code": make_documents(41), "web": make_documents(30), "book": make_documents(9)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two sources, each with its set, and a set that is trained on by nobody."""
    folder = tmp_path_factory.mktemp("corpora")
    made = {}
    for name, documents in DOCUMENTS.items():
        write_corpus("files", folder / name, documents)
        files = str(folder / name / "*.txt")
        made[name] = MixtureSource(name=name, kind=SourceKind.files, files=files)
    sources, others = [made["web"], made["code"]], [made["book"]]
    return DataConfig(
        sources=sources, validation_sets=others, streams=4, validation_fraction=0.2, num_workers=0
    )


def open_rank(config: DataConfig, tokenizer: Tokenizer, rank: int, world_size: int) -> Loader:
    share = Share(24, 8, 2, rank, world_size)
    return open_loader(config, open_places(config), tokenizer, seed=3, share=share)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_set_has_each_of_its_targets_once_over_all_ranks(
    config: DataConfig, tokenizer: Tokenizer, world_size: int
) -> None:
    ranks = [
        open_rank(config, tokenizer, rank, world_size).validation for rank in range(world_size)
    ]
    assert [one.name for one in ranks[0]] == ["web", "code", "book"]
    for sets in zip(*ranks, strict=True):
        texts = [
            t for t in DOCUMENTS[sets[0].name] if is_held_out(t, 0.2) or sets[0].name == "book"
        ]
        assert all(one.texts == texts for one in sets) and len(texts) > 2
        assert sets[0].bytes == sum(len(text.encode()) for text in texts)
        batches = [one.batches() for one in sets]
        assert len({len(mine) for mine in batches}) == 1
        assert all(len(batch["input_ids"]) == 2 for mine in batches for batch in mine)
        shares = [torch.cat([stack(batch) for batch in mine]) for mine in batches]
        ordered = torch.stack(shares, 1).flatten(0, 1)  # rows rank::world_size, together again
        got = ordered[:, 1].flatten()
        wanted = [t for text in texts for t in (*tokenizer.encode(text), tokenizer.eos_id)]
        assert got[got != IGNORED].tolist() == wanted


def test_one_source_has_one_set_of_the_old_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = write_corpus("files", tmp_path, make_documents(41))
    (held_out,) = open_rank(config, tokenizer, 0, 1).validation
    assert held_out.name == "held_out"


def test_a_source_that_holds_nothing_out_leaves_the_other_sets(
    config: DataConfig, tokenizer: Tokenizer
) -> None:
    none = dataclasses.replace(config, validation_fraction=0.0)
    loader = open_rank(none, tokenizer, 0, 1)
    assert [one.name for one in loader.validation] == ["book"]


@pytest.mark.parametrize("length", [30, 4000])
def test_long_rows_are_beginnings_of_documents_or_all_of_them_end_to_end(
    tmp_path: Path, tokenizer: Tokenizer, length: int
) -> None:
    config = write_corpus("files", tmp_path, make_documents(200))
    ranks = [open_rank(config, tokenizer, rank, 2).validation[0] for rank in range(2)]
    documents = [
        [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in ranks[0].texts
    ]
    assert ranks[0].tokens == sum(map(len, documents)) > length
    (rows, joined), (others, _) = (one.long_rows(length, 4) for one in ranks)
    assert 1 <= len(rows) <= 4 and joined == (length == 4000)
    stream = [index for document in documents for index in document]
    texts = [stream] if joined else [ids for ids in documents if len(ids) > length]
    for number, (row, other, text) in enumerate(zip(rows, others, texts, strict=False)):
        assert all(torch.equal(row[key], other[key]) for key in row), number
        assert row["input_ids"].tolist() == [text[:length]]
        assert not row["segment_start"].any()
        labels, after = row["shift_labels"][0], torch.tensor(text[1 : length + 1])
        begins = after == tokenizer.bos_id
        assert (labels[begins] == IGNORED).all() and torch.equal(labels[~begins], after[~begins])
        assert bool(begins.any()) == joined
