"""Token shards: the bytes of one shard file, how it is written, and how documents are read from it.

A shard is the documents' tokens end to end, a table of where each of them ends, and a footer. It is
written once and never changed. Where shards live and which of them there are is not known here.

    tokens  u2 or u4, little endian: <bos> tokens <eos> of each document, then zeros to 8 bytes
    table   TABLE, 24 bytes a document
    footer  48 bytes: FOOTER
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from data.cache import ShardEntry, ShardFile
from data.documents import REASONS
from data.quarantine import BadShard

MAGIC, VERSION = b"RETSHARD", 1
FOOTER = struct.Struct("<8sIIQQ16s")
"""Magic, version, bytes a token, documents, tokens, xxh3_128 of all that stands before it."""
TABLE = np.dtype([("end", "<u8"), ("digest", "<u8"), ("bytes", "<u4"), ("reason", "<u4")])
"""A document: the exclusive end of its tokens, order.content_digest(), UTF-8 bytes of its text, and
0 where it is kept, else 1 + its place in documents.REASONS (it has no tokens then)."""
# Records this far apart are read one by one rather than with all that lie between.
SPARSE = 64
# Tokens between two documents that are read along rather than reading twice.
GAP = 1 << 14
# Bytes that are in memory at once while a shard is verified.
AT_ONCE = 1 << 22


class Encoded(NamedTuple):
    """Documents on their way into shards."""

    tokens: np.ndarray
    """u2 or u4 [T]: <bos> tokens <eos> of each, end to end."""
    table: np.ndarray
    """TABLE [D], `end` counted from the first of these tokens."""


def token_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id of a vocabulary: u2 or u4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def join(
    documents: Sequence[np.ndarray], facts: Sequence[tuple[int, int, int]], dtype: np.dtype
) -> Encoded:
    """Documents, each int [n], and (digest, bytes, reason) of each, as one Encoded."""
    table = np.zeros(len(documents), TABLE)
    table["end"] = np.cumsum([len(ids) for ids in documents])
    for name, values in zip(("digest", "bytes", "reason"), zip(*facts, strict=True), strict=True):
        table[name] = values
    return Encoded(np.concatenate(documents).astype(dtype), table)


class ShardWriter:
    """Writes documents into shard-00000000.bin, shard-00000001.bin, ... of one folder.

    A shard ends with the document that brings its tokens to `shard_bytes`, so that the documents
    alone decide what is in which. A shard has its name when it is whole and on the disk.
    """

    def __init__(self, folder: Path, dtype: np.dtype, shard_bytes: int, first: int = 0) -> None:
        """`first` is the number of the first shard."""
        self._folder, self._dtype = folder, dtype
        self._limit = -(-shard_bytes // dtype.itemsize)  # tokens
        self._number = first
        self._file: BinaryIO | None = None
        self._hash, self._tokens = xxhash.xxh3_128(), 0
        self._tables: list[np.ndarray] = []

    def add(self, encoded: Encoded) -> list[ShardEntry]:
        """Append documents; returns the shards that were finished by them."""
        tokens, table = encoded
        finished = []
        while len(table):
            wanted = self._limit - self._tokens
            count = int(np.searchsorted(table["end"], wanted)) + 1  # documents, the last included
            part = table[:count].copy()
            end = int(part["end"][-1])
            self._write(tokens[:end])
            part["end"] += self._tokens
            self._tables.append(part)
            self._tokens += end
            tokens, table = tokens[end:], table[count:].copy()
            table["end"] -= end
            if self._tokens >= self._limit:
                finished.append(self._finish())
        return finished

    def close(self) -> list[ShardEntry]:
        """Finish the last shard, if there is one."""
        return [self._finish()] if self._tables else []

    def _write(self, data: np.ndarray | bytes) -> None:
        if self._file is None:
            self._file = (self._folder / f"{shard_name(self._number)}.tmp").open("wb")
        raw = memoryview(data).cast("B") if len(data) else b""
        self._hash.update(raw)
        self._file.write(raw)

    def _finish(self) -> ShardEntry:
        table = np.concatenate(self._tables)
        self._write(bytes(-self._tokens * self._dtype.itemsize % 8))
        self._write(table.view("u1"))
        width = self._dtype.itemsize
        self._write(
            FOOTER.pack(MAGIC, VERSION, width, len(table), self._tokens, self._hash.digest())
        )
        assert self._file is not None
        size = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = shard_name(self._number)
        (self._folder / f"{name}.tmp").rename(self._folder / name)
        made = ShardEntry(name, size, self._hash.hexdigest(), len(table), self._tokens)
        self._number += 1
        self._file, self._tables = None, []
        self._hash, self._tokens = xxhash.xxh3_128(), 0
        return made


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:08}.bin"


class Shard:
    """One open shard."""

    def __init__(self, name: str, file: ShardFile) -> None:
        """Takes over the open file. BadShard where it is no shard of this format."""
        self.name, self._file, self._size = name, file, file.size
        try:
            raw = self._read(max(file.size - FOOTER.size, 0), FOOTER.size)
            magic, version, width, self.documents, self.tokens, self._digest = FOOTER.unpack(raw)
            self._table = -(-self.tokens * width // 8) * 8
            size = self._table + self.documents * TABLE.itemsize + FOOTER.size
            if (magic, version, size) != (MAGIC, VERSION, file.size) or width not in (2, 4):
                raise BadShard(f"{name} is no token shard of version {VERSION}: prepare it again")
        except BadShard:
            file.close()
            raise
        self._dtype = np.dtype(f"<u{width}")

    def checksum(self) -> str | None:
        """Hexadecimal xxh3_128 of the file, all of which is read; None where what stands before the
        footer is not what was written."""
        seen = xxhash.xxh3_128()
        end = self._size - FOOTER.size
        for start in range(0, end, AT_ONCE):
            seen.update(self._read(start, min(AT_ONCE, end - start)))
        if seen.digest() != self._digest:
            return None
        seen.update(self._read(end, FOOTER.size))
        return seen.hexdigest()

    def table(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """TABLE [count] of the documents from `first` on; of all where no count is given."""
        count = self.documents - first if count is None else count
        raw = self._read(self._table + first * TABLE.itemsize, count * TABLE.itemsize)
        return np.frombuffer(raw, TABLE)

    def records(self, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where tokens start int64 [n], TABLE [n]) of documents in rising order, int64 [n]."""
        low, high = int(ordinals[0]), int(ordinals[-1])
        if high - low > SPARSE * len(ordinals):
            parts = [self.records(ordinals[i : i + 1]) for i in range(len(ordinals))]
            starts, tables = zip(*parts, strict=True)
            return np.concatenate(starts), np.concatenate(tables)
        before = min(low, 1)  # the record before says where the first document starts
        table = self.table(low - before, high - low + 1 + before)
        ends = table["end"].astype(np.int64)
        if not before:
            ends = np.concatenate([[0], ends])
        return ends[ordinals - low], table[ordinals - low + before]

    def read(self, starts: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        """int32 [n] for each document whose tokens start and end there, in rising order."""
        made: list[np.ndarray] = []
        if not len(starts):
            return made
        breaks = np.flatnonzero(starts[1:] - ends[:-1] > GAP) + 1
        for first, stop in zip([0, *breaks], [*breaks, len(starts)], strict=True):
            base, end = int(starts[first]), int(ends[stop - 1])
            width = self._dtype.itemsize
            raw = self._read(base * width, (end - base) * width)
            tokens = np.frombuffer(raw, self._dtype).astype(np.int32)
            bounds = zip(
                (starts[first:stop] - base).tolist(),
                (ends[first:stop] - base).tolist(),
                strict=True,
            )
            made += [tokens[a:b] for a, b in bounds]
        return made

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes."""
        try:
            raw = os.pread(self._file.fd, size, offset)
        except OSError as error:
            raise BadShard(f"{self.name} cannot be read: {error}") from error
        if len(raw) != size:
            raise BadShard(f"{self.name} ends before byte {offset + size}: it was cut short")
        return raw


def reason_number(reason: str | None) -> int:
    """What the table says about a document: 0 for one that is kept."""
    return REASONS.index(reason) + 1 if reason else 0
