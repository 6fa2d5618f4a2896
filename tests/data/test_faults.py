"""Training rows from shards behind servers are the rows of the disk, whatever the servers do wrong;
where they cannot be, the run says so or goes on without, and does the same again after a crash.
"""

import itertools
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.config import DataConfig, MixtureSource, OnBadShard, Order, SourceKind
from data.loader import Loader, merge_states
from data.opening import open_data
from data.prepare import prepare_shards
from data.quarantine import BadShard, Failure
from data.share import Share
from data.sources import open_source
from data.tokenizer import Tokenizer, TokenizerConfig
from tests.conftest import Runs
from tests.data.children import child, kill, wait_for
from tests.data.corpora import make_documents, stack, write_corpus
from tests.data.servers import PLACES, Place, answer, drip, flip, make_place, truncate

STEPS = 24
"""Steps of 8 rows of 32 tokens, which are a little more than an epoch."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder of some 24 prepared shards."""
    folder = tmp_path_factory.mktemp("shelf")
    config = write_corpus("many jsonl", folder / "text", make_documents(150))
    source = open_source(config)
    out = folder / "out"
    prepare_shards(source, tokenizer, out, workers=1, shard_bytes=1000, longest=10**6)
    assert len(names(out)) >= 20
    return out


@pytest.fixture
def place(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = filled("http", shelf, monkeypatch)
    yield made
    made.server.faults.reset()


def filled(kind: str, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = make_place(kind, "faults", monkeypatch)
    for path in shelf.rglob("*"):
        if path.is_file():
            made.put(path.relative_to(shelf).as_posix(), path.read_bytes())
    return made


def names(shelf: Path) -> list[str]:
    return sorted(path.name for path in shelf.glob("*.bin"))


def config_of(address: str | Path, cache: Path) -> DataConfig:
    return DataConfig(
        kind=SourceKind.prepared,
        path=str(address),
        streams=4,
        shuffle_window=8,
        validation_fraction=0.1,
        validation_bytes=500,  # the first shard's alone
        cache=str(cache),
        timeout=0.3,
        retry_seconds=20,
    )


def open_loader(config: DataConfig, rank: int = 0, world_size: int = 1) -> Loader:
    share = Share(32, 8, 8 // world_size, rank, world_size)
    return open_data(config, TokenizerConfig(vocab_size=1000), seed=1, share=share)


def read(loader: Loader, steps: int, position: int = 0, state: dict | None = None) -> torch.Tensor:
    """This rank's rows [steps, rows of the rank, 3, L] from a position on."""
    made = itertools.islice(loader.steps(position, state), steps)
    return torch.stack([torch.cat([stack(batch) for batch in step]) for step in made])


def served(config: DataConfig, steps: int = STEPS) -> torch.Tensor:
    with closing(open_loader(config)) as loader:
        return read(loader, steps)


@pytest.mark.parametrize("kind", PLACES)
def test_rows_are_those_of_the_disk_whatever_passing_fault_there_is(
    kind: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = filled(kind, shelf, monkeypatch)
    faults = place.server.faults
    passing = [answer(429, Retry_After="1"), answer(500), answer(408), faults.stall, truncate, flip]
    shards = iter(names(shelf))
    faults.once = {"index.json": answer(503), **{next(shards): fault for fault in passing}}
    faults.always = {next(shards): drip}
    assert torch.equal(
        served(config_of(place.address, tmp_path)), served(config_of(shelf, tmp_path))
    )
    assert not faults.once  # each was met


def test_a_cache_smaller_than_the_shards_gives_the_same_rows(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    room = 3.5 * max((shelf / name).stat().st_size for name in names(shelf))
    config = replace(config_of(place.address, tmp_path), cache_gigabytes=room / 1e9)
    assert torch.equal(served(config), served(config_of(shelf, tmp_path)))
    assert sum(path.stat().st_size for path in tmp_path.glob("shards/*")) <= room


def test_a_shard_that_is_gone_stops_the_run_in_one_sentence(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    gone = names(shelf)[6]
    place.put(gone, None)
    with pytest.raises(BadShard) as caught:
        served(config_of(place.address, tmp_path))
    assert str(caught.value).startswith(f"{gone} of {place.address} is not there (404); put")
    assert "data.on_bad_shard=quarantine goes on without its" in str(caught.value)


@pytest.mark.parametrize("wrong", ["gone", "a wrong byte", "never answered"])
def test_quarantine_is_repeated_exactly_by_a_resume_though_the_shard_is_there_again(
    wrong: str, place: Place, shelf: Path, tmp_path: Path
) -> None:
    bad = names(shelf)[6]
    fault = {"gone": answer(404), "a wrong byte": flip, "never answered": answer(503)}[wrong]
    place.server.faults.always = {bad: fault}
    config = replace(
        config_of(place.address, tmp_path / "a"),
        on_bad_shard=OnBadShard.quarantine,
        retry_seconds=0.2 if wrong == "never answered" else 20,
    )
    with closing(open_loader(config)) as loader:
        steps, rows, states = loader.steps(0), [], [loader.state()]
        for _ in range(STEPS):
            rows.append(torch.cat([stack(batch) for batch in next(steps)]))
            states.append(json.loads(json.dumps(merge_states([loader.state()]))))
    healthy = served(config_of(shelf, tmp_path))
    decided = [Failure(*values) for values in states[-1]["quarantined"]]
    assert {failure.shard for failure in decided} == {bad}
    assert all(f"{bad} of {place.address}" in failure.why for failure in decided)
    assert not torch.equal(torch.stack(rows), healthy)
    place.server.faults.reset()  # the shard is back
    counts = [len(state["quarantined"]) for state in states]
    first = next(step for step, count in enumerate(counts) if count)
    last = counts.index(counts[-1])
    for step in (last, STEPS - 4):  # all is decided: the same rows, with an empty cache too
        with closing(open_loader(replace(config, cache=str(tmp_path / str(step))))) as loader:
            again = read(loader, STEPS - step, 8 * step, states[step])
            assert torch.equal(again, torch.stack(rows[step:]))
            assert loader.state()["quarantined"] == states[-1]["quarantined"]
            assert loader.news(loader.state()) == []  # and told before
    with closing(open_loader(config)) as loader:  # nothing is decided: the rows of the disk
        again = read(loader, STEPS - first + 1, 8 * (first - 1), states[first - 1])
        assert torch.equal(again, healthy[first - 1 :])


def test_quarantine_is_a_streams_own_so_that_any_ranks_make_the_same_rows(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    place.put(names(shelf)[6], None)
    config = config_of(place.address, tmp_path)
    config = replace(config, on_bad_shard=OnBadShard.quarantine)
    alone = served(config)
    states, shares = [], []
    for rank in range(2):
        with closing(open_loader(config, rank, 2)) as loader:
            shares.append(read(loader, STEPS))
            states.append(loader.state())
    together = torch.stack(shares, dim=2).flatten(1, 2)  # row i is rank i mod 2's
    assert torch.equal(together, alone)
    decided = [Failure(*values) for values in merge_states(states)["quarantined"]]
    assert {failure.stream % 2 for failure in decided} == {0, 1}


def test_held_out_documents_that_cannot_be_read_are_said_and_not_gone_without(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    place.put(names(shelf)[0], None)
    config = config_of(place.address, tmp_path)
    with pytest.raises(RuntimeError, match="is not there .* validated on"):
        open_loader(replace(config, on_bad_shard=OnBadShard.quarantine))


def run_and_save(config: DataConfig, saved: Path, go: Path) -> None:
    """Serve steps without end, [step, state] written to `saved` after each; none after the first
    one before `go` is there."""
    loader = open_loader(config)
    for step, _ in enumerate(loader.steps(0), 1):
        saved.with_suffix(".tmp").write_text(json.dumps([step, merge_states([loader.state()])]))
        os.replace(saved.with_suffix(".tmp"), saved)
        wait_for(go.exists)


def resumed(config: DataConfig, saved: Path) -> tuple[int, torch.Tensor]:
    """Where a killed run stood, and its rows from there on to the last of STEPS."""
    step, state = json.loads(saved.read_text())
    with closing(open_loader(config)) as loader:
        return step, read(loader, STEPS - step, 8 * step, state)


def test_a_run_killed_while_it_fetches_ahead_resumes_with_the_same_rows(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    config = replace(config_of(place.address, tmp_path), timeout=30, order=Order.shards)
    saved, go = tmp_path / "state.json", tmp_path / "go"
    number = child(lambda: run_and_save(config, saved, go))
    wait_for(saved.exists)
    # From here on every download stalls half way: the first one is of a shard fetched ahead.
    place.server.faults.always = {".bin": place.server.faults.stall}
    begun = len(place.server.faults.reads)
    go.touch()
    wait_for(lambda: len(place.server.faults.reads) > begun)
    parts = (tmp_path / "shards").glob
    kill(number, signal.SIGKILL)
    assert list(parts("*.part"))
    place.server.faults.reset()
    step, again = resumed(config, saved)
    whole = served(replace(config, path=str(shelf)))
    assert 0 < step < STEPS and torch.equal(again, whole[step:])
    wait_for(lambda: not list(parts("*.part")))  # what is still fetched ahead comes to its end


def test_a_run_killed_while_workers_read_ahead_resumes_with_the_same_rows(
    place: Place, shelf: Path, tmp_path: Path
) -> None:
    """Text, tokenized by two workers, mixed with shards, which they fetch: each of them has the
    store and the cache that the run had used before it forked."""
    text = {"kind": SourceKind.dataset, "dataset": "json"}
    files = [str(shelf.parent / "text" / "*")]
    config = replace(
        config_of(place.address, tmp_path),
        **{"kind": SourceKind.python, "path": None, "num_workers": 2},
        sources=[
            MixtureSource(name="text", data_files=files, **text),
            MixtureSource(name="shards", kind=SourceKind.prepared, path=place.address),
        ],
    )
    saved, go = tmp_path / "state.json", tmp_path / "go"
    go.touch()
    number = child(lambda: run_and_save(config, saved, go))
    wait_for(lambda: saved.exists() and json.loads(saved.read_text())[0] >= 5)
    kill(number, signal.SIGKILL)
    step, again = resumed(config, saved)
    config.sources[1].path = str(shelf)
    assert torch.equal(again, served(replace(config, num_workers=0), max(STEPS, step))[step:])


def test_a_run_goes_on_without_a_shard_and_its_events_say_so(
    runs: Runs, place: Place, shelf: Path
) -> None:
    gone = names(shelf)[1]
    place.put(gone, None)
    given = {"data": "prepared", "data__files": "null", "data__path": place.address}
    sizes = {"tokenizer__vocab_size": 1000, "model__vocab_size": 1024, "steps": 4}
    more = {"data__validation_bytes": 500, "data__shuffle_window": 8}
    more |= {"data__on_bad_shard": "quarantine"}
    out = runs.finished(name="without", **given, **sizes, **more)
    events = [e for e in runs.events("without") if e["event"] == "quarantined"]
    assert events and {event["shard"] for event in events} == {gone}
    assert len({event["stream"] for event in events}) == len(events)
    assert f"{gone} of {place.address} is not there (404)" in out
