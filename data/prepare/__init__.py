"""Preparing shards: any source of text, tokenized once into files that training reads as they are.

One process reads, others tokenize, and the reader writes what they give in the text's own order, so
that the shards are the same bytes for any number of them. The same call goes on where a killed one
stopped. The command line is in __main__.py; what a shard is, in data/shards.py.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import ShardEntry
from data.cache_folder import ShardFile
from data.documents import LONGEST_LINE, REASONS, Source, checked, in_words
from data.index import NAME, Index
from data.order import content_digest
from data.prepare.tokenize import encode_in_order
from data.quarantine import BadShard
from data.shards import Shard, ShardWriter, reason_number, shard_name, token_type
from data.tokenizer import Tokenizer

IDENTITY = "prepare.json"
SHARD_BYTES = 64 << 20
# Texts of a shard are counted in 4 bytes.
LONGEST_POSSIBLE = (1 << 32) - 1


@dataclass
class Summary:
    """What was prepared, so far or in all."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """UTF-8 bytes of the documents that were kept."""
    shards: int = 0
    taken_over: int = 0
    """Documents in shards that an earlier call had finished."""
    seconds: float = 0.0
    """Of this call."""
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    found: tuple[int, int] = (0, 0)
    """Bytes and tokens of what was taken over."""

    def add(self, table: np.ndarray, tokens: int) -> None:
        """Count documents, TABLE [n]."""
        self.documents += len(table)
        self.tokens += tokens
        self.bytes += int(table["bytes"].sum())
        for reason, count in enumerate(np.bincount(table["reason"], minlength=1)[1:]):
            if count:
                self.refused[REASONS[reason]] += int(count)

    def speed(self) -> str:
        """How fast this call tokenizes."""
        seconds = max(self.seconds, 1e-9)
        size, tokens = self.bytes - self.found[0], self.tokens - self.found[1]
        return f"{size / seconds / 1e6:.1f} MB/s, {tokens / seconds:,.0f} tokens/s"

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens, "
            f"{self.bytes / max(self.tokens, 1):.2f} bytes per token\n"
            f"refused: {in_words(self.refused)}\n"
            f"{self.shards:,} shards in {self.seconds:.1f} s, {self.speed()}"
        )


def prepare_shards(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    workers: int,
    longest: int,
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Write the shards of `source` into the folder `out`, or what is still missing of them.

    `workers` processes tokenize; `longest` is data.longest_document in UTF-8 bytes; a shard ends
    with the document that brings its tokens to `shard_bytes`; `report` hears how far it is.
    ValueError where `out` holds shards of something else, or another process writes there.
    """
    _check_numbers(workers, shard_bytes, longest)
    began = time.monotonic()
    rules = {"longest_document": longest, "longest_line": LONGEST_LINE}
    identity = {
        "source": source.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
        "rules": rules,
        "shard_bytes": shard_bytes,
    }
    summary = Summary()

    def tell() -> None:
        summary.shards, summary.seconds = len(shards), time.monotonic() - began
        report(summary)

    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        _check_identity(out, identity)
        shards, ends = _take_over(out, summary)
        counts: Counter[int] = Counter()
        writer = ShardWriter(out, token_type(tokenizer.vocab_size), shard_bytes, len(shards))
        texts = _rest(source, counts, summary.taken_over, ends, longest)
        for encoded in encode_in_order(texts, tokenizer, workers, longest):
            shards += writer.add(encoded)
            summary.add(encoded.table, len(encoded.tokens))
            tell()
        shards += writer.close()
        if not summary.tokens:
            raise ValueError(f"there is no text to prepare; refused: {in_words(summary.refused)}")
        index = Index(
            dtype=f"u{token_type(tokenizer.vocab_size).itemsize}",
            bytes=summary.bytes,
            refused=dict(summary.refused),
            rules=rules,
            source={"fingerprint": source.fingerprint(), "words": source.describe()},
            tokenizer=_export(tokenizer, out / "tokenizer"),
            layout=source.layout([counts[shard] for shard in range(max(counts) + 1)]),
            shards=shards,
        )
        _write_whole(out / NAME, index.dump())
        tell()
    return summary


def _check_numbers(workers: int, shard_bytes: int, longest: int) -> None:
    """ValueError for a number that makes no sense."""
    if workers < 1 or shard_bytes < 1 or not 0 < longest <= LONGEST_POSSIBLE:
        raise ValueError(
            f"workers={workers} and shard_bytes={shard_bytes} must be 1 or more, and "
            f"data.longest_document={longest} between 1 and {LONGEST_POSSIBLE}"
        )


def _rest(
    source: Source, counts: Counter[int], done: int, ends: dict[int, np.void], longest: int
) -> Iterator[str]:
    """The texts after the first `done`, all counted by shard of the source; of those that are there
    already, the ones in `ends` are compared with what their records say."""
    for ordinal, (shard, text) in enumerate(source.in_order()):
        counts[shard] += 1
        if ordinal in ends:
            raw, reason = checked(text, longest)
            seen = (content_digest(raw) if raw else 0, reason_number(reason))
            if seen != (ends[ordinal]["digest"], ends[ordinal]["reason"]):
                raise ValueError(
                    f"document {ordinal} of the text is another one than when its shard was "
                    "written: the text changed; give another out, or remove this one"
                )
        if ordinal >= done:
            yield text


def _take_over(out: Path, summary: Summary) -> tuple[list[ShardEntry], dict[int, np.void]]:
    """The shards that are whole, counted into `summary`, and {ordinal: record} of the last document
    of each; all else that an earlier call left is removed."""
    shards: list[ShardEntry] = []
    ends: dict[int, np.void] = {}
    while (made := _whole(out / shard_name(len(shards)))) is not None:
        entry, table = made
        shards.append(entry)
        summary.add(table, entry.tokens)
        ends[summary.documents - 1] = table[-1]
    summary.taken_over, summary.found = summary.documents, (summary.bytes, summary.tokens)
    for path in out.glob("shard-*"):
        if path.name not in {entry.name for entry in shards}:
            path.unlink()
    return shards, ends


def _whole(path: Path) -> tuple[ShardEntry, np.ndarray] | None:
    """A finished shard and its table, or None where there is none or it is damaged."""
    if not path.exists():
        return None
    size = path.stat().st_size
    try:
        shard = Shard(path.name, ShardFile(os.open(path, os.O_RDONLY), size))
    except BadShard:
        return None
    try:
        digest = shard.checksum()
        if digest is None:
            return None
        return ShardEntry(path.name, size, digest, shard.documents, shard.tokens), shard.table()
    finally:
        shard.close()


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """While this lasts, no other process may prepare in the folder."""
    with (out / f"{IDENTITY}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is preparing in out={out}: wait for it") from None
        yield


def _check_identity(out: Path, identity: dict[str, Any]) -> None:
    """Write down what the folder is for; ValueError where it is for something else."""
    path = out / IDENTITY
    if not path.exists():
        _write_whole(path, json.dumps(identity, indent=1) + "\n")
        return
    found = json.loads(path.read_text())
    changed = [key for key in identity if found.get(key) != identity[key]]
    if changed:
        words = ", ".join(f"{key} {found.get(key)} -> {identity[key]}" for key in changed)
        raise ValueError(f"out={out} holds shards of something else ({words}): give another out")


def _export(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write the tokenizer's files and say what they are."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.export(folder)
    files = {}
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        files[path.name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    return {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "files": files,
    }


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
