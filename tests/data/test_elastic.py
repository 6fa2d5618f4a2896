"""A run may change its machines and its batch, and goes on with the same rows of its mixture."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from data.config import DataConfig, MixtureSource, SourceKind, StageConfig
from data.loader import State, merge_states
from data.opening import open_loader, open_places
from data.share import Share
from data.tokenizer import Tokenizer
from tests.data.corpora import make_documents, stack, write_corpus

LENGTH, SEED = 16, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two sources, one of many files and one of a single one, for three stages."""
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus("files", folder / "code", make_documents(48))
    write_corpus("jsonl", folder / "web", make_documents(130))
    sources = [
        MixtureSource(
            name="web",
            kind=SourceKind.dataset,
            dataset="json",
            data_files=[str(folder / "web" / "*")],
            weight=3,
        ),
        MixtureSource(name="code", kind=SourceKind.files, files=str(folder / "code" / "*.txt")),
    ]
    stages = [StageConfig(64, {"code": 1}), StageConfig(150, {"code": 1, "web": 1})]
    return DataConfig(
        sources=sources,
        stages=stages,
        streams=8,
        shuffle_window=8,
        validation_fraction=0.1,
        num_workers=0,
    )


def served(
    config: DataConfig,
    tokenizer: Tokenizer,
    ranks: int,
    position: int,
    count: int,
    batch: int,
    micro: int,
    state: State | None = None,
    length: int = LENGTH,
) -> Iterator[tuple[torch.Tensor, State]]:
    """(rows [batch, 3, length] in global order, all ranks' state) after each of `count` steps."""
    shares = [Share(length, batch, micro, rank, ranks) for rank in range(ranks)]
    loaders = [
        open_loader(config, open_places(config), tokenizer, seed=SEED, share=share)
        for share in shares
    ]
    steps = [loader.steps(position, state) for loader in loaders]
    for first in range(position, position + count * batch, batch):
        step = torch.full((batch, 3, length), -1)
        for rank, mine in enumerate(steps):
            rows = torch.cat([stack(one) for one in next(mine)])
            step[(rank - first) % ranks :: ranks] = rows
        yield step, json.loads(json.dumps(merge_states([loader.state() for loader in loaders])))
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="module")
def expected(config: DataConfig, tokenizer: Tokenizer) -> torch.Tensor:
    """Rows [2400, 3, LENGTH] of one rank: some epochs, all stages."""
    steps = list(served(config, tokenizer, 1, 0, 100, 24, 24))
    cursors = steps[-1][1]["cursors"]
    assert len(cursors) == 16
    assert min(at[0] for name, at in cursors.items() if name.startswith("code")) >= 1
    return torch.cat([step for step, _ in steps])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_the_same_global_batches_on_any_number_of_ranks(
    config: DataConfig, tokenizer: Tokenizer, ranks: int
) -> None:
    """Also from the middle of a step of another size, without cursors."""
    many = dataclasses.replace(config, streams=24)
    one = torch.cat([step for step, _ in served(many, tokenizer, 1, 0, 8, 24, 8)])
    got = torch.cat([step for step, _ in served(many, tokenizer, ranks, 13, 7, 24, 1)])
    assert torch.equal(got, one[13 : 13 + 7 * 24])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_again_and_again_on_other_ranks_batches_and_workers(
    config: DataConfig, tokenizer: Tokenizer, expected: torch.Tensor, workers: int
) -> None:
    """Over the edges of stages and the ends of epochs, each time from what the last one left."""
    config = dataclasses.replace(config, num_workers=workers)
    state: State | None = None
    done = 0
    for ranks, count, batch, micro in (
        (2, 3, 16, 4),
        (1, 5, 24, 8),
        (4, 12, 16, 1),
        (1, 40, 24, 3),
    ):
        for step, left in served(config, tokenizer, ranks, done, count, batch, micro, state):
            assert torch.equal(step, expected[done : done + batch])
            done, state = done + batch, left
    assert done > 1200
    last, _ = next(served(config, tokenizer, 1, done, 1, 24, 24, None))
    assert torch.equal(last, expected[done : done + 24])


def test_another_length_loses_no_token(
    config: DataConfig, tokenizer: Tokenizer, expected: torch.Tensor
) -> None:
    """By the cursors: each source's tokens in each stream go on where they stood."""
    config = dataclasses.replace(config, sources=config.sources[1:], stages=[])
    whole = torch.cat([step for step, _ in served(config, tokenizer, 1, 0, 60, 8, 8)])
    *_, (_, state) = served(config, tokenizer, 1, 0, 20, 8, 8)
    later = [step for step, _ in served(config, tokenizer, 2, 160, 20, 8, 4, state, length=24)]
    after = torch.cat(later)
    for stream in range(8):
        tokens = whole[stream::8, 0].flatten()[20 * LENGTH :]
        assert torch.equal(after[stream::8, 0].flatten(), tokens[: 20 * 24])


def test_what_was_served_of_each_source_is_counted_by_position(
    config: DataConfig, tokenizer: Tokenizer
) -> None:
    share = Share(LENGTH, 8, 8)
    with closing(
        open_loader(config, open_places(config), tokenizer, seed=SEED, share=share)
    ) as loader:
        steps = loader.steps(0)
        for number, _ in enumerate(itertools.islice(steps, 30), 1):
            told = loader.progress(8 * number)
            cursors = loader.state()["cursors"]
            for name in ("code", "web"):
                rows = sum(at[3] for key, at in cursors.items() if key.startswith(name))
                assert told[f"data/{name}/tokens"] == LENGTH * rows
        assert loader.progress(8) == loader.progress(8)
        assert told["data/code/tokens"] + told["data/web/tokens"] == 30 * 8 * LENGTH
