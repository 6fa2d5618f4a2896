"""Rows made beside the run: worker processes that read ahead, or none where reading is cheap.

Which rows there are is told by `make`; the number of processes changes neither rows nor order.
"""

import itertools
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.quarantine import BadShard

T = TypeVar("T")


class RankRows(IterableDataset, Generic[T]):
    """Global rows first, first + world_size, ...; worker w of W makes every W-th, from the w-th on.

    torch hands out the workers' rows in turn, so that the order is the same for any W. W divides
    the rank's streams, so that each stream is read by one worker only.
    """

    def __init__(
        self,
        make: Callable[[int, int], Iterator[T]],
        first: int,
        world_size: int,
        num_streams: int,
    ) -> None:
        """`make(stream, row)` reads one stream from that row on."""
        self._make, self._first = make, first
        self._world_size, self._num_streams = world_size, num_streams

    def __iter__(self) -> Iterator[tuple[int, T]]:
        """(stream, what was made) of each row."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reading: dict[int, Iterator[T]] = {}
        first = self._first + worker * self._world_size
        for index in itertools.count(first, workers * self._world_size):
            number, stream = divmod(index, self._num_streams)
            if stream not in reading:
                reading[stream] = self._make(stream, number)
            yield stream, next(reading[stream])


class Workers(Generic[T]):
    """The processes that make a rank's rows, as one iterator; none where `count` is 0."""

    def __init__(self, rows: RankRows[T], count: int, ahead: int) -> None:
        """`count` processes together make up to `ahead` rows before they are asked for."""
        self._processes: list[multiprocessing.process.BaseProcess] = []
        if count == 0:
            # Not through torch, which would spend ten times as long on a row as shards do.
            self._rows: Iterator[tuple[int, T]] | None = iter(rows)
            return
        before = set(multiprocessing.active_children())
        loader = DataLoader(
            rows,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=count,
            # A spawned worker would import train.py again, with all its libraries.
            multiprocessing_context="fork",
            prefetch_factor=max(2, -(-ahead // count)),
            worker_init_fn=_ignore_signals,
        )
        self._rows = iter(loader)
        self._processes = list(set(multiprocessing.active_children()) - before)

    def __next__(self) -> tuple[int, T]:
        """(stream, what was made) of the next row."""
        assert self._rows is not None, "rows of a closed loader"
        try:
            return next(self._rows)
        except (BadShard, ValueError) as error:
            # torch puts a worker's whole traceback before the sentence
            kind = BadShard if isinstance(error, BadShard) else ValueError
            words = re.split(r"^\S*(?:BadShard|ValueError|CacheFull): ", str(error), flags=re.M)[-1]
            raise kind(words.strip()) from error

    def close(self) -> None:
        """End the processes."""
        self._rows = None  # torch tells its workers to stop when the last reference goes
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():  # waiting for a network, and deaf to SIGTERM as it should be
                process.kill()
                process.join()
        self._processes = []


def _as_it_is(item: T) -> T:
    """Keep numpy arrays: as torch tensors each would travel through a file of shared memory."""
    return item


def _ignore_signals(worker: int) -> None:
    """Stay alive on SIGTERM and Ctrl-C, which reach the whole group, while the parent still saves.

    torch ends its workers when their parent is gone, and close() when it is done.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
