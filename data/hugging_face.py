"""Documents from whatever Hugging Face `datasets` streams: hub names, Parquet, JSONL, Arrow, text.

Only its reading is used. Its shuffling, epochs and splitting over processes hold state or depend on
who asks, so the order is made here, from shard numbers and documents counted within a stream.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.config import LOCAL_BUILDERS
from data.documents import Refused
from data.order import Layout, permutation, whole_shards
from data.stores import StoreError
from data.undecodable import HANDLER, JSON_ENCODING, MARK

if TYPE_CHECKING:  # imported where it is used: it is slow, and most mistakes need not wait for it
    import datasets
    import pyarrow

ROWS_PER_READ = 256
# Each open stream of JSON or text holds so many bytes several times over: 64 streams of JSONL made
# a process of 0.69 GB with 2 MiB, and one of 1.8 GB with the 10 MiB that `datasets` takes.
BYTES_PER_READ = 2 << 20


class DatasetSource:
    """One split of one dataset, read as shards; a shard is a file, or a row group of Parquet."""

    def __init__(
        self,
        name: str,
        subset: str | None,
        data_files: list[str],
        split: str,
        text_column: str,
        shuffle_window: int,
        validation_split: str | None,
    ) -> None:
        import datasets

        datasets.disable_progress_bars()  # every rank would draw its own
        self._name, self._subset, self._split = str(Path(name).expanduser()), subset, split
        self._column, self._window = text_column, shuffle_window
        self._validation_split = validation_split
        self._files = _resolve(data_files) if name in LOCAL_BUILDERS else data_files
        self._data = self._load(split)
        self._validation = self._load(validation_split) if validation_split else self._data
        self._by_streams: dict[int, datasets.IterableDataset] = {}

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        """One stream's documents of one epoch, shuffled within windows of `shuffle_window`."""
        texts = self._in_shard_order(stream, num_streams, epoch, seed)
        window, done = divmod(skip, self._window)
        texts = itertools.islice(texts, window * self._window, None)
        while block := list(itertools.islice(texts, self._window)):
            for index in permutation(len(block), seed, epoch, stream, window)[done:]:
                yield block[index]
            window, done = window + 1, 0

    def in_order(self) -> Iterator[tuple[int, str]]:
        """(shard, text) of every document, shards being row groups where files have several."""
        shards = self._data.reshard()
        for shard in range(shards.num_shards):
            for text in _read(shards, [shard], self._column):
                yield shard, text

    def documents_if_known(self) -> int | None:
        """What the dataset says about itself, if it does."""
        split = (self._data.info.splits or {}).get(self._split)
        return split.num_examples or None if split else None

    def layout(self, counts: Sequence[int]) -> Layout:
        """How documents() orders what in_order() gives, of which `counts` are in each shard."""
        files = self._data.num_shards
        parts = [
            self._data.shard(num_shards=files, index=file).reshard().num_shards
            for file in range(files)
        ]
        fine = np.zeros(sum(parts), np.int64)
        fine[: len(counts)] = counts
        before = np.cumsum([0, *fine])
        coarse = np.diff(before[np.cumsum([0, *parts])])
        return Layout(False, coarse, fine if len(fine) > len(coarse) else None)

    def validation_documents(self) -> Iterator[str]:
        """Every document of the split that validation comes from, in its own order."""
        return _read(self._validation, range(self._validation.num_shards), self._column)

    def fingerprint(self) -> str:
        """sha256 over the names and, of local files, their names and sizes, in hexadecimal."""
        name = "folder" if Path(self._name).is_dir() else self._name
        parts = [name, self._subset, self._split, self._validation_split, self._column]
        remote = [file for file in self._files if not Path(file).is_file()]
        listing = json.dumps([*parts, remote, _local_sizes(self._name, self._files)])
        return hashlib.sha256(listing.encode()).hexdigest()

    def describe(self) -> str:
        """One line for the log."""
        shards = f"{self._data.num_shards} shards"
        return " ".join(filter(None, [self._name, self._subset, f"split {self._split},", shards]))

    def check_streams(self, num_streams: int) -> None:
        """Raise a ValueError when some stream would get no document in an epoch."""
        data = self._resharded(num_streams)
        if whole_shards(data.num_shards, num_streams):
            return
        texts = _read(data, range(data.num_shards), self._column)
        count = sum(1 for _ in itertools.islice(texts, num_streams))
        if count < num_streams:
            raise ValueError(
                f"data.dataset={self._name} has {count} documents, but each of data.streams="
                f"{num_streams} streams needs at least one: set data.streams={max(count, 1)} or "
                "less, or give more data"
            )

    def _in_shard_order(
        self, stream: int, num_streams: int, epoch: int, seed: int
    ) -> Iterator[str]:
        """One stream's documents before the windows: whole shards, else every S-th document."""
        data = self._resharded(num_streams)
        shards = permutation(data.num_shards, seed, epoch)
        if whole_shards(data.num_shards, num_streams):
            return _read(data, shards[stream::num_streams], self._column)
        return _read(data, shards, self._column, stream, num_streams)

    def _resharded(self, num_streams: int) -> datasets.IterableDataset:
        """The split, in smaller shards where there are too few files to share out."""
        if num_streams not in self._by_streams:
            enough = whole_shards(self._data.num_shards, num_streams)
            # Resharding reads the footer of every file, so not without need.
            self._by_streams[num_streams] = self._data if enough else self._data.reshard()
        return self._by_streams[num_streams]

    def _load(self, split: str) -> datasets.IterableDataset:
        """Open one split for streaming and make sure that it has the text column."""
        import datasets

        if Path(self._name, "state.json").is_file():
            raise ValueError(
                f"data.dataset={self._name} is what save_to_disk wrote: read its files with "
                f"data=arrow 'data.data_files=[{self._name}/*.arrow]'"
            )
        try:
            builder = datasets.load_dataset_builder(
                self._name, self._subset, data_files=self._files or None
            )
            _read_everything(builder.config)
            data = builder.as_streaming_dataset(split=split)
        except ConnectionError as error:
            raise StoreError(
                f"data.dataset={self._name} cannot be reached: check the name and the network, or "
                f"take data=python, text that is on this machine ({error})"
            ) from error
        except FileNotFoundError as error:
            raise ValueError(
                f"data.dataset={self._name} was not found: set it to a hub name, a folder or one "
                f"of {', '.join(LOCAL_BUILDERS)} with data.data_files ({error})"
            ) from error
        except StopIteration as error:  # it looks into the first file, and says no more
            raise StoreError(
                f"data.data_files: nothing could be read of the first of {len(self._files)}: check "
                "its address and the network"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"data.dataset={self._name} cannot be opened with data.subset={self._subset} and "
                f"split {split} (data.split or data.validation_split): {error}"
            ) from error
        with _broken_text(self._name):
            columns = list(data.features or next(iter(data), {self._column: ""}))
        if self._column not in columns:
            raise ValueError(
                f"data.dataset={self._name} has no column data.text_column={self._column}: its "
                f"columns are {', '.join(columns)}"
            )
        return data.select_columns([self._column]).with_format("arrow")


def _read(
    data: datasets.IterableDataset,
    shards: Iterable[int],
    column: str,
    offset: int = 0,
    stride: int = 1,
) -> Iterator[str]:
    """The documents of some shards, one after another: those numbered offset, offset + stride, ...

    `.iter()` and not plain iteration, which inside a torch worker process would quietly give each
    worker only its own share.
    """
    number = 0
    for shard in shards:
        part = data.shard(num_shards=data.num_shards, index=int(shard))
        for table in _tables(part):
            wanted = np.arange((offset - number) % stride, table.num_rows, stride)
            for text in _texts(table.column(column).take(wanted)):
                if not isinstance(text, str | None):
                    raise ValueError(
                        f"data.text_column={column} holds {type(text).__name__}, not text: its "
                        f"first value is {text!r:.60}"
                    )
                yield Refused("not_utf8") if text and MARK in text else text or ""
            number += table.num_rows


def _tables(data: datasets.IterableDataset) -> Iterator[pyarrow.Table]:
    with _broken_text(data.info.dataset_name or "a dataset"):
        yield from data.iter(batch_size=ROWS_PER_READ)


@contextmanager
def _broken_text(name: str) -> Iterator[None]:
    """Gives a sentence to a file that is not of its kind, whatever the library makes of that."""
    import pyarrow

    try:
        yield
    except Exception as error:
        broken = next(
            (e for e in (error, error.__context__) if isinstance(e, pyarrow.ArrowInvalid)), None
        )
        if broken is None:
            raise
        raise ValueError(
            f"a file of data.dataset={name} cannot be read: {str(broken).splitlines()[0]}"
        ) from broken


def _texts(column: pyarrow.ChunkedArray) -> list[str | None]:
    """The values of a column, MARK standing for bytes that are no UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow

        raw = column.cast(pyarrow.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors=HANDLER) for value in raw]


def _read_everything(reader: datasets.BuilderConfig) -> None:
    """Make a reader mark what it cannot decode, and hold no more than it needs."""
    from datasets.packaged_modules.csv.csv import CsvConfig
    from datasets.packaged_modules.json.json import JsonConfig
    from datasets.packaged_modules.text.text import TextConfig

    if isinstance(reader, JsonConfig | TextConfig):
        reader.chunksize = min(reader.chunksize, BYTES_PER_READ)
    if isinstance(reader, TextConfig | CsvConfig):
        reader.encoding_errors = HANDLER
    if isinstance(reader, JsonConfig):
        if reader.encoding == "utf-8" and reader.field is None:
            reader.encoding = JSON_ENCODING


def _resolve(patterns: list[str]) -> list[str]:
    """Local globs as sorted absolute paths, so that the order of shards is the same everywhere."""
    names: list[str] = []
    for pattern in patterns:
        if "://" in pattern:
            names.append(pattern)
            continue
        found = sorted(glob.glob(str(Path(pattern).expanduser().absolute()), recursive=True))
        found = [name for name in found if Path(name).is_file()]
        if not found:
            raise ValueError(f"data.data_files has {pattern}, which matches no file")
        names += found
    return names


def _local_sizes(name: str, files: list[str]) -> list[tuple[str, int]]:
    """(name below their common folder, bytes) of the local files behind a dataset."""
    if Path(name).is_dir():
        paths = sorted(path for path in Path(name).rglob("*") if path.is_file())
    else:
        paths = [Path(file) for file in files if Path(file).is_file()]
    if not paths:
        return []
    root = os.path.commonpath([path.parent for path in paths])
    return [(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths]
