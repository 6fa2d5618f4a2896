"""The k-th global batch is the same for any number of ranks and workers, and after any resume."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from data.batch import Batch
from data.config import DataConfig, SourceKind
from data.documents import TokenizedText
from data.files import FileSource
from data.loader import Loader, State, merge_states
from data.opening import open_loader, open_places
from data.order import is_held_out
from data.share import Share
from data.streams import rows
from data.tokenizer import Tokenizer
from tests.data.corpora import make_documents, stack, write_corpus

LENGTH, GLOBAL, MICRO, STREAMS = 24, 8, 2, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 documents for 8 streams: an epoch is over in about twenty steps."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus("files", folder, make_documents(41))
    return folder


@pytest.fixture(scope="module")
def loaders(folder: Path, tokenizer: Tokenizer) -> "Opener":
    return Opener(folder, tokenizer)


class Opener:
    """Opens loaders over one corpus and puts their ranks' batches together again."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def config(self, workers: int = 0, streams: int = STREAMS) -> DataConfig:
        return DataConfig(
            kind=SourceKind.files,
            files=str(self.folder / "*.txt"),
            streams=streams,
            validation_fraction=0.2,
            num_workers=workers,
        )

    def open(self, rank: int = 0, world_size: int = 1, workers: int = 0, **changed: int) -> Loader:
        config = self.config(workers, changed.pop("streams", STREAMS))
        shape = {"sequence_length": LENGTH, "global_batch_size": GLOBAL, "micro_batch_size": MICRO}
        seed = changed.pop("seed", 3)
        share = Share(**(shape | changed), rank=rank, world_size=world_size)
        return open_loader(config, open_places(config), self.tokenizer, seed=seed, share=share)

    def global_steps(
        self,
        position: int,
        count: int,
        world_size: int = 1,
        workers: int = 0,
        state: State | None = None,
    ) -> Iterator[tuple[torch.Tensor, State]]:
        """(rows [GLOBAL, 3, LENGTH] in global order, all ranks' state) after each step."""
        ranks = [self.open(rank, world_size, workers) for rank in range(world_size)]
        steps = [loader.steps(position, state) for loader in ranks]
        for number in range(count):
            first = position + number * GLOBAL
            step = torch.full((GLOBAL, 3, LENGTH), -1)
            for rank, loader_steps in enumerate(steps):
                batches = next(loader_steps)
                assert len(batches) == GLOBAL // (MICRO * world_size)
                mine = [i for i in range(first, first + GLOBAL) if i % world_size == rank]
                for i, row in zip(mine, torch.cat([stack(b) for b in batches]), strict=True):
                    step[i - first] = row
            merged = merge_states([loader.state() for loader in ranks])
            yield step, json.loads(json.dumps(merged))
        for loader in ranks:
            loader.close()


@pytest.fixture(scope="module")
def expected(loaders: Opener) -> list[tuple[torch.Tensor, State]]:
    """What one rank without workers serves from the start: three epochs and more."""
    steps = list(loaders.global_steps(0, 60))
    epochs = [min(where[0] for where in state["cursors"].values()) for _, state in steps]
    assert epochs[-1] >= 2
    return steps


def test_global_row_i_is_row_i_div_s_of_stream_i_mod_s(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]]
) -> None:
    (place,) = open_places(loaders.config())
    source = TokenizedText(place.text, loaders.tokenizer, fraction=0.2, longest=10**6)
    streams = [rows(source, s, STREAMS, 3, LENGTH) for s in range(STREAMS)]
    flat = torch.cat([step for step, _ in expected])
    for i in range(len(flat)):
        row, _, _ = next(streams[i % STREAMS])
        assert flat[i, 0].tolist() == row.tokens[:-1].tolist()
        assert flat[i, 1].tolist() == row.labels.tolist()
        assert flat[i, 2].tolist() == row.segment_start.tolist()


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (1, 1), (1, 3), (2, 2)])
def test_ranks_and_workers_do_not_change_a_global_batch(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]], world_size: int, workers: int
) -> None:
    got = loaders.global_steps(0, 30, world_size, workers)
    for (step, state), (wanted, wanted_state) in zip(got, expected, strict=False):
        assert torch.equal(step, wanted) and state == wanted_state


@pytest.mark.parametrize("with_cursors", [True, False])
def test_resume_at_any_step_is_exact(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]], with_cursors: bool
) -> None:
    for k in range(1, len(expected) - 1):
        state = expected[k - 1][1] if with_cursors else None
        for step, (wanted, _) in zip(
            loaders.global_steps(k * GLOBAL, 2, state=state), expected[k:], strict=False
        ):
            assert torch.equal(step[0], wanted)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_twice_on_other_numbers_of_ranks_is_exact(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]], workers: int
) -> None:
    """Two ranks, then four, then one, each from what the one before left."""
    state: State | None = None
    done = 0
    for world_size, count in ((2, 7), (4, 5), (1, 9)):
        got = loaders.global_steps(done * GLOBAL, count, world_size, workers, state)
        for step, left in got:
            assert torch.equal(step, expected[done][0])
            done, state = done + 1, left
    assert state == expected[done - 1][1]


def test_another_batch_size_continues_the_same_rows(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]]
) -> None:
    """Position counts rows: 18 of them on whatever machines, then steps of 8 rows on 4 ranks."""
    flat = torch.cat([step for step, _ in expected])
    for rank in range(4):
        steps = loaders.open(rank, 4).steps(18, expected[1][1])
        got = torch.cat([stack(batch) for _ in range(5) for batch in next(steps)])
        mine = [i for i in range(18, 18 + 40) if i % 4 == rank]
        assert torch.equal(got, flat[mine])


def test_cursors_beyond_the_position_are_not_believed(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]]
) -> None:
    step, _ = next(loaders.global_steps(8, 1, state=expected[20][1]))
    assert torch.equal(step, expected[1][0])


def test_cursors_are_of_rows_handed_out_and_not_of_rows_made_ahead(loaders: Opener) -> None:
    loader = loaders.open(workers=2)
    steps = loader.steps(0)
    assert loader.state()["cursors"] == {}
    next(steps)
    assert [where[3] for where in loader.state()["cursors"].values()] == [1] * STREAMS
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_placing_a_step_ahead_changes_neither_rows_nor_cursors(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]], workers: int
) -> None:
    begun: list[torch.Tensor] = []

    def place(batches: list[Batch]) -> Callable[[], list[Batch]]:
        begun.append(torch.cat([stack(batch) for batch in batches]))
        return lambda: batches

    with closing(loaders.open(workers=workers)) as loader:
        steps = loader.steps(0, place=place)
        for number, (wanted, state) in enumerate(expected[:20], start=1):
            got = torch.cat([stack(batch) for batch in next(steps)])
            assert torch.equal(got, wanted) and loader.state() == state
            assert len(begun) == number + 1 and torch.equal(begun[-1], expected[number][0])


class Watched(FileSource):
    """Remembers where it was asked to begin."""

    asked: list[tuple[int, int]]

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        self.asked.append((epoch, skip))
        return super().documents(stream, num_streams, epoch, seed, skip)


def test_resuming_reads_from_the_cursors_on_and_nothing_before(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]]
) -> None:
    paths = sorted(loaders.folder.glob("*.txt"))
    source = Watched(loaders.folder, paths, "data.files")
    source.asked = []
    config = loaders.config()
    place = open_places(config)[0]._replace(text=source)
    share = Share(LENGTH, GLOBAL, MICRO)
    loader = open_loader(config, [place], loaders.tokenizer, seed=3, share=share)
    state = expected[40][1]
    got = torch.cat([stack(batch) for batch in next(loader.steps(41 * GLOBAL, state))])
    assert torch.equal(got, expected[41][0])
    asked = source.asked[:STREAMS]
    assert asked == [tuple(state["cursors"][str(stream)][:2]) for stream in range(STREAMS)]
    assert all(epoch > 0 for epoch, _ in asked)


def test_no_training_row_has_held_out_text(
    loaders: Opener, expected: list[tuple[torch.Tensor, State]]
) -> None:
    loader, tokenizer = loaders.open(), loaders.tokenizer
    (held_out,) = loader.validation
    assert held_out.texts and all(is_held_out(text, 0.2) for text in held_out.texts)
    assert held_out.bytes == sum(len(text.encode()) for text in held_out.texts)
    flat = torch.cat([step for step, _ in expected])
    for stream in range(STREAMS):
        tokens = flat[stream::STREAMS, 0].flatten().tolist()
        ends = [i for i, token in enumerate(tokens) if token == tokenizer.bos_id]
        texts = {tokenizer.decode(tokens[a + 1 : b - 1]) for a, b in itertools.pairwise(ends)}
        assert len(texts) > 2 and not texts & set(held_out.texts)


def test_the_fingerprint_is_of_what_decides_the_rows_and_of_nothing_else(
    loaders: Opener,
) -> None:
    first = loaders.open().fingerprint
    assert first == loaders.open(1, 2, workers=1).fingerprint
    assert first == loaders.open(global_batch_size=16).fingerprint
    changes = ({"seed": 4}, {"sequence_length": 25}, {"streams": 4})
    others = {loaders.open(**change).fingerprint for change in changes}
    assert len(others) == 3 and first not in others
