"""The loader: this rank's share of the global order of rows, in micro-batches, and of validation.

It turns (position, rank, world_size) into stream numbers and row numbers, collects the rows, and
knows where each source stands in each stream. What a row holds is decided in data/streams.py, and
which source it is of in data/mixture.py; the loader can change neither.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data.batch import Batch, as_batch
from data.config import DataConfig, Packing
from data.documents import HeldOut
from data.fingerprint import check_resume, digest, without_defaults
from data.mixture import Feed, Mixture, mixed_rows, mixture_of
from data.packing import Row, empty_row
from data.quarantine import Failure, Quarantine
from data.share import Share, check_ranks
from data.streams import Cursor, rows
from data.tokenizer import Tokenizer
from data.validation import ValidationSet
from data.workers import RankRows, Workers

Placing = Callable[[list[Batch]], Callable[[], list[Batch]]]
"""Begins to bring a step's micro-batches to where they are used, and returns what ends it."""
Cursors = dict[tuple[int, int], Cursor]
"""{(source, stream): where the source stands in it}"""
State = dict[str, Any]
"""What a checkpoint keeps of the data: cursors, quarantined, data; JSON-able."""
Served = tuple[int, tuple[Row, Cursor, list[Failure]]]
"""A row with the number of its source, the cursor after it, and the decisions made on its way."""


class Loader:
    """Training steps and validation rows for one rank."""

    def __init__(
        self,
        config: DataConfig,
        feeds: list[Feed],
        tokenizer: Tokenizer,
        validation: dict[str, HeldOut],
        *,
        seed: int,
        share: Share,
        quarantine: Quarantine | None = None,
        closing: Iterable[Callable[[], None]] = (),
    ) -> None:
        """Start no process yet. `quarantine` is the one that the feeds' sources ask; `closing` is
        what close() is to end of theirs."""
        check_ranks(config, share.global_batch_size, share.micro_batch_size, share.world_size)
        self._config, self._seed, self._share = config, seed, share
        self._feeds = sorted(feeds, key=lambda feed: feed.name)  # so that their order is no part
        self._mixture: Mixture = mixture_of(config, [feed.name for feed in self._feeds], seed)
        self.tokenizer = tokenizer
        self._quarantine, self._closing = quarantine or Quarantine(), list(closing)
        self._decided: list[Failure] = []
        self._told: set[Failure] = set()
        self._cursors: Cursors = {}
        self._before: tuple[Cursors, list[Failure]] = {}, []
        self._workers: Workers[Served] | None = None
        self._counted = (0, np.zeros(len(feeds), np.int64))
        self.validation: list[ValidationSet] = [
            ValidationSet(
                name,
                held_out,
                length=share.sequence_length,
                eos_id=tokenizer.eos_id,
                batch_size=share.micro_batch_size,
                rank=share.rank,
                world_size=share.world_size,
            )
            for name, held_out in validation.items()
        ]
        """The sets that the run is scored on; the first one is the one that it is compared on."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the rows and their order, and of nothing else."""
        return digest(self.parts)

    @property
    def parts(self) -> dict[str, Any]:
        """What decides the rows, by name, and the batch size; JSON-able."""
        config = self._config
        parts = {
            "tokenizer": self.tokenizer.fingerprint,
            "sequence_length": self._share.sequence_length,
            "streams": config.streams,
            "seed": self._seed,
            "packing": config.packing.value,
            "global_batch_size": self._share.global_batch_size,
        }
        if not config.sources:
            return without_defaults(parts | self._feeds[0].parts)
        parts["sources"] = {feed.name: without_defaults(feed.parts) for feed in self._feeds}
        return without_defaults(parts | {"stages": config.proportions()})

    def check(self, path: Path, position: int, fingerprint: str, state: State) -> list[str]:
        """See data/fingerprint.py: what to say when going on from the checkpoint at `path`, which
        was saved at `position` with that fingerprint and state; ValueError where it must not be."""
        cursors = bool(state.get("cursors")) or position == 0
        old, allow = state.get("data"), self._config.allow_change
        return check_resume(path, fingerprint, old, self.parts, position, allow, cursors)

    def steps(
        self, position: int, state: State | None = None, place: Placing | None = None
    ) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step, without end.

        The first step has global rows position .. position + global_batch_size - 1; row i belongs
        to rank i mod world_size. `state` is what all ranks' state() gave, merged: its cursors save
        the time of counting rows from the start, and what was quarantined stays so. Batch:
        input_ids int64 [b, L], shift_labels int64 [b, L], segment_start int32 [b, L] on the CPU.
        `place` is given each step's micro-batches while the step before is at work, and what it
        returned is called for those that are handed out.
        """
        self.close()
        self._restore(state or {})
        self._start_workers(position)
        on_the_way: deque[tuple[Callable[[], list[Batch]], Cursors, list[Failure]]] = deque()
        while True:
            batches, *after = self._next_step()
            if place is not None:
                on_the_way.append((place(batches), *after))
                if len(on_the_way) < 2:
                    continue
                take, *after = on_the_way.popleft()
                batches = take()
            self._before = self._cursors, self._decided
            self._cursors = self._cursors | after[0]  # of what is handed out, not of what was read
            self._decided = self._decided + after[1]
            yield batches

    def give_back(self) -> None:
        """Take back the step that was handed out last: state() is that before it again."""
        self._cursors, self._decided = self._before

    def _next_step(self) -> tuple[list[Batch], Cursors, list[Failure]]:
        """The micro-batches of this rank's next step, its streams' cursors after them, and what was
        decided on their way."""
        assert self._workers is not None, "steps() of a closed loader"
        size, cursors = self._share.micro_batch_size, {}
        made: list[Row] = []
        failures: list[Failure] = []
        for _ in range(self._share.rows_per_step):
            stream, (source, (row, cursor, failed)) = next(self._workers)
            made.append(row)
            cursors[source, stream] = cursor
            failures += failed
        batches = [as_batch(made[at : at + size]) for at in range(0, len(made), size)]
        return batches, cursors, failures

    def blank(self) -> Batch:
        """A micro-batch of the shape of every other, with no target in it."""
        row = empty_row(self._share.sequence_length, self.tokenizer.eos_id)
        return as_batch([row] * self._share.micro_batch_size)

    def state(self) -> State:
        """Where this rank's streams stand after the steps handed out, what it goes on without, and
        what the data is. Cursors are named by their stream, in a mixture source/stream."""
        cursors = {
            "/".join(filter(None, [self._feeds[source].name, str(stream)])): list(cursor)
            for (source, stream), cursor in sorted(self._mine().items())
        }
        decided = [list(failure) for failure in sorted(set(self._decided))]
        return {"cursors": cursors, "quarantined": decided, "data": self.parts}

    def news(self, state: State) -> list[Failure]:
        """The decisions in the merged state of all ranks that were not told before."""
        decided = [Failure(*values) for values in state["quarantined"]]
        told, self._told = self._told, set(decided)
        return [failure for failure in decided if failure not in told]

    def progress(self, position: int) -> dict[str, float]:
        """Of each source of a mixture: tokens served to all ranks in the rows before `position`,
        and the epoch that this rank's slowest stream of it is in."""
        if not self._config.sources:
            return {}
        row, counts = self._counted
        if position < row:
            row, counts = 0, np.zeros_like(counts)
        self._counted = position, counts + self._mixture.rows_before(0, 1, position, row)
        said: dict[str, float] = {}
        for source, feed in enumerate(self._feeds):
            epochs = [at.epoch for (number, _), at in self._mine().items() if number == source]
            tokens = int(self._counted[1][source]) * self._share.sequence_length
            said[f"data/{feed.name}/tokens"] = tokens
            said[f"data/{feed.name}/epoch"] = min(epochs, default=0)
        return said

    def _mine(self) -> Cursors:
        """The cursors of this rank's streams; a checkpoint brought those of all."""
        rank, ranks = self._share.rank, self._share.world_size
        return {key: at for key, at in self._cursors.items() if key[1] % ranks == rank}

    def close(self) -> None:
        """End what reads ahead, here and in worker processes; steps() may be called again."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None
        for close in self._closing:
            close()

    def _restore(self, state: State) -> None:
        """Take over what a checkpoint kept."""
        self._decided = [Failure(*values) for values in state.get("quarantined", [])]
        self._told = set(self._decided)
        for failure in self._decided:
            self._quarantine.add(failure)
        names = {feed.name: number for number, feed in enumerate(self._feeds)}
        self._before = {}, self._decided
        old = state.get("data") or self.parts
        now = self.parts
        same_rows = old.get("packing") == now.get("packing") and (
            self._config.packing is Packing.cut or old["sequence_length"] == now["sequence_length"]
        )
        self._cursors = {}
        for key, values in (state.get("cursors") or {}).items():
            name, _, stream = key.rpartition("/")
            with suppress(KeyError):  # a source that is there no more, by data.allow_change
                at = Cursor(*values)
                # Within a document, or a block, only rows of the same make begin there.
                self._cursors[names[name], int(stream)] = at if same_rows else at._replace(token=0)
        counts = np.zeros(len(self._feeds), np.int64)
        for (source, _), at in self._cursors.items():
            counts[source] += at.row
        self._counted = int(counts.sum()), counts  # billions of rows would take minutes to count

    def _start_workers(self, position: int) -> None:
        """Begin to make rows, from this rank's first one at or after `position`."""
        share = self._share
        first = position + (share.rank - position) % share.world_size
        make = functools.partial(
            _stream_rows,
            feeds=self._feeds,
            mixture=self._mixture,
            cursors=self._cursors,
            num_streams=self._config.streams,
            seed=self._seed,
            sequence_length=share.sequence_length,
            packing=self._config.packing,
        )
        rows_of_rank = RankRows(make, first, share.world_size, self._config.streams)
        # Two steps of this rank: a step takes all its rows at once.
        self._workers = Workers(rows_of_rank, self._num_workers(), 2 * share.rows_per_step)

    def _num_workers(self) -> int:
        """The most workers that can share this rank's streams evenly, within data.num_workers."""
        if not any(feed.source.needs_workers for feed in self._feeds):
            return 0
        streams = self._config.streams // self._share.world_size
        wanted = min(self._config.num_workers, streams)
        return next((count for count in range(wanted, 0, -1) if streams % count == 0), 0)


def _stream_rows(
    stream: int,
    first_row: int,
    *,
    feeds: list[Feed],
    mixture: Mixture,
    cursors: Cursors,
    num_streams: int,
    **settings: Any,
) -> Iterator[Served]:
    """The rows of one stream from the first_row-th on, each source read from its cursor where that
    one is not already beyond the wanted row."""
    starts = {source: at for (source, number), at in cursors.items() if number == stream}
    counts = [starts[source].row if source in starts else 0 for source in range(len(feeds))]
    if sum(counts) != first_row:  # cursors of another position, or none: count
        counts = mixture.rows_before(stream, num_streams, first_row).tolist()

    def read(source: int, row: int) -> Iterator[tuple[Row, Cursor, list[Failure]]]:
        start = starts.get(source)
        if start is not None and start.row > row:
            start = None
        feed = feeds[source].source
        return rows(feed, stream, num_streams, start=start, first_row=row, **settings)

    return mixed_rows(read, mixture, stream, num_streams, first_row, counts)


def merge_states(states: list[State]) -> State:
    """What all ranks' state() say together."""
    cursors = {name: at for state in states for name, at in state["cursors"].items()}
    decided = sorted({tuple(values) for state in states for values in state["quarantined"]})
    return {
        "cursors": cursors,
        "quarantined": [list(values) for values in decided],
        "data": states[0]["data"],
    }
