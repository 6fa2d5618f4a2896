"""The loader: this rank's share of the global order of rows, in micro-batches, and of validation.

It turns (position, rank, world_size) into stream numbers and row numbers and collects rows from
worker processes. What a row holds is decided in data/streams.py; the loader cannot change it.
"""

import functools
import hashlib
import itertools
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.packing import Row, empty_row, pack_rows
from data.sources import DataConfig, Source, SourceKind, held_out_documents
from data.streams import Cursor, rows
from data.tokenizer import Tokenizer

Batch = dict[str, torch.Tensor]
Placing = Callable[[list[Batch]], Callable[[], list[Batch]]]
"""Begins to bring a step's micro-batches to where they are used, and returns what ends it."""
T = TypeVar("T")


def check_layout(
    config: DataConfig, global_batch_size: int, micro_batch_size: int, world_size: int
) -> None:
    """Raise a ValueError unless streams and batch can be shared out evenly over the ranks."""
    if config.streams % world_size:
        raise ValueError(
            f"data.streams={config.streams} cannot be shared out evenly over {world_size} ranks: "
            "set data.streams to a multiple of the number of ranks"
        )
    if global_batch_size % (micro_batch_size * world_size):
        raise ValueError(
            f"global_batch_size={global_batch_size} is no multiple of micro_batch_size="
            f"{micro_batch_size} times {world_size} ranks: change global_batch_size or "
            "micro_batch_size"
        )


class Loader:
    """Training steps and validation rows for one rank."""

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        tokenizer: Tokenizer,
        *,
        seed: int,
        sequence_length: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Read the held-out documents; start no process yet. Sizes in rows, lengths in tokens."""
        check_layout(config, global_batch_size, micro_batch_size, world_size)
        self._config, self._source = config, source
        self.tokenizer = tokenizer
        self._seed, self._length = seed, sequence_length
        self._rank, self._world_size = rank, world_size
        self._micro_batch_size = micro_batch_size
        self._rows_per_step = global_batch_size // world_size
        self._cursors: dict[int, Cursor] = {}
        self._validation: list[Batch] | None = None
        self._workers: list[multiprocessing.process.BaseProcess] = []
        self._rows: Iterator[tuple[int, Row, Cursor]] | None = None
        self.held_out: list[str] = held_out_documents(config, source)
        """The documents validated on; no training row has one of them."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the rows and their order, and of nothing else."""
        config = self._config
        parts = {
            "source": self._source.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint,
            "sequence_length": self._length,
            "streams": config.streams,
            "window": config.shuffle_window if config.kind is SourceKind.dataset else None,
            "fraction": config.held_out_of_training,
            "seed": self._seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out documents: the denominator of bits per byte."""
        return sum(len(text.encode()) for text in self.held_out)

    def steps(
        self,
        position: int,
        cursors: dict[str, list[int]] | None = None,
        place: Placing | None = None,
    ) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step, without end.

        The first step has global rows position .. position + global_batch_size - 1; row i belongs
        to rank i mod world_size. `cursors` of any ranks only save the time of counting rows from
        the start. Batch: input_ids int64 [b, L], shift_labels int64 [b, L], segment_start int32
        [b, L] on the CPU. `place` is given each step's micro-batches while the step before is at
        work, and what it returned is called for those that are handed out.
        """
        self.close()
        self._cursors = {int(stream): Cursor(*where) for stream, where in (cursors or {}).items()}
        self._start_workers(position)
        on_the_way: deque[tuple[Callable[[], list[Batch]], dict[int, Cursor]]] = deque()
        while True:
            batches, cursors_after = self._next_step()
            if place is not None:
                on_the_way.append((place(batches), cursors_after))
                if len(on_the_way) < 2:
                    continue
                take, cursors_after = on_the_way.popleft()
                batches = take()
            self._cursors |= cursors_after  # of what is handed out now, not of what was read
            yield batches

    def _next_step(self) -> tuple[list[Batch], dict[int, Cursor]]:
        """The micro-batches of this rank's next step, and its streams' cursors after them."""
        assert self._rows is not None, "steps() of a closed loader"
        count, size = self._rows_per_step, self._micro_batch_size
        got = [next(self._rows) for _ in range(count)]
        made = [row for _, row, _ in got]
        batches = [_batch(made[start : start + size]) for start in range(0, count, size)]
        return batches, {stream: cursor for stream, _, cursor in got}

    def blank(self) -> Batch:
        """A micro-batch of the shape of every other, with no target in it."""
        eos = self.tokenizer.eos_id
        return _batch([empty_row(self._length, eos)] * self._micro_batch_size)

    def cursors(self) -> dict[str, list[int]]:
        """{stream: cursor} after the steps handed out so far, of this rank's streams; JSON-able."""
        streams = range(self._rank, self._config.streams, self._world_size)
        return {str(s): list(self._cursors[s]) for s in streams if s in self._cursors}

    def validation(self) -> list[Batch]:
        """This rank's share of the held-out rows, as many batches on every rank.

        Over all ranks each target is there exactly once; what is missing to whole batches is filled
        with rows whose labels are all -100.
        """
        if self._validation is None:
            self._validation = self._pack_validation()
        return self._validation

    def close(self) -> None:
        """End the worker processes; steps() may be called again."""
        self._rows = None  # torch tells its workers to stop when the last reference goes
        for worker in self._workers:
            worker.join(timeout=5)
            if worker.is_alive():  # waiting for a network, and deaf to SIGTERM as it should be
                worker.kill()
                worker.join()
        self._workers = []

    def _pack_validation(self) -> list[Batch]:
        tokenizer, size = self.tokenizer, self._micro_batch_size
        encoded = [
            np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], np.int32)
            for text in self.held_out
        ]
        packed = pack_rows(encoded, self._length, tokenizer.eos_id)
        share = -(-len(packed) // (self._world_size * size)) * size
        mine = packed[self._rank :: self._world_size]
        mine += [empty_row(self._length, tokenizer.eos_id)] * (share - len(mine))
        return [_batch(mine[start : start + size]) for start in range(0, share, size)]

    def _start_workers(self, position: int) -> None:
        """Begin to make rows, from this rank's first one at or after `position`."""
        count = self._num_workers()
        make = functools.partial(
            _stream_rows,
            cursors=self._cursors,
            source=self._source,
            tokenizer=self.tokenizer,
            num_streams=self._config.streams,
            seed=self._seed,
            sequence_length=self._length,
            fraction=self._config.held_out_of_training,
        )
        first = position + (self._rank - position) % self._world_size
        before = set(multiprocessing.active_children())
        self._rows = iter(
            DataLoader(
                _RankRows(make, first, self._world_size, self._config.streams),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=count,
                # Two steps of this rank: a step takes all its rows at once.
                # A spawned worker would import train.py again, with all its libraries.
                multiprocessing_context="fork" if count else None,
                prefetch_factor=max(2, -(-2 * self._rows_per_step // count)) if count else None,
                worker_init_fn=_ignore_signals,
            )
        )
        self._workers = list(set(multiprocessing.active_children()) - before)

    def _num_workers(self) -> int:
        """The most workers that can share this rank's streams evenly, within data.num_workers."""
        streams = self._config.streams // self._world_size
        wanted = min(self._config.num_workers, streams)
        return next((count for count in range(wanted, 0, -1) if streams % count == 0), 0)


class _RankRows(IterableDataset):
    """Global rows first, first + world_size, ...; worker w of W makes every W-th, from the w-th on.

    torch hands out the workers' rows in turn, so that the order is the same for any W. W divides
    the rank's streams, so that each stream is read by one worker only.
    """

    def __init__(
        self,
        make: Callable[..., Iterator[tuple[Row, Cursor]]],
        first: int,
        world_size: int,
        num_streams: int,
    ) -> None:
        self._make, self._first = make, first
        self._world_size, self._num_streams = world_size, num_streams

    def __iter__(self) -> Iterator[tuple[int, Row, Cursor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        open_streams: dict[int, Iterator[tuple[Row, Cursor]]] = {}
        first = self._first + worker * self._world_size
        for index in itertools.count(first, workers * self._world_size):
            number, stream = divmod(index, self._num_streams)
            if stream not in open_streams:
                open_streams[stream] = self._make(stream, number)
            yield stream, *next(open_streams[stream])


def _stream_rows(
    stream: int, first_row: int, *, cursors: dict[int, Cursor], **settings: Any
) -> Iterator[tuple[Row, Cursor]]:
    """rows() from the stream's cursor, unless that one is already beyond the wanted row."""
    start = cursors.get(stream)
    if start is not None and start.row > first_row:
        start = None
    return rows(stream=stream, start=start, first_row=first_row, **settings)


def _batch(made: list[Row]) -> Batch:
    """Rows as one batch: input_ids and shift_labels int64 [b, L], segment_start int32 [b, L]."""
    inputs = np.stack([row.tokens[:-1] for row in made]).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(inputs),
        "shift_labels": torch.from_numpy(np.stack([row.labels for row in made])),
        "segment_start": torch.from_numpy(np.stack([row.segment_start for row in made])),
    }


def _as_it_is(item: T) -> T:
    """Keep numpy arrays: as torch tensors each would travel through a file of shared memory."""
    return item


def _ignore_signals(worker: int) -> None:
    """Stay alive on SIGTERM and Ctrl-C, which reach the whole group, while the parent still saves.

    torch ends its workers when their parent is gone, and close() when it is done.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
