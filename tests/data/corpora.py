"""Small corpora on disk, one writer for each kind of source, as text and as prepared shards, and
rows read back into documents."""

import gzip
import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from data.batch import Batch
from data.cache_folder import ShardFile
from data.config import DataConfig, OnBadShard, Order, SourceKind
from data.documents import Source, TokenizedText, TokenSource
from data.index import Index
from data.order import is_held_out
from data.packing import Row
from data.prepare import prepare_shards
from data.prepared import PreparedSource
from data.quarantine import Quarantine
from data.sources import open_source
from data.streams import Cursor, rows
from data.tokenizer import Tokenizer

KINDS = {
    "files": "",
    "jsonl": "json",
    "many jsonl": "json",
    "jsonl.gz": "json",
    "jsonl.zst": "json",
    "parquet": "parquet",
    "many parquet": "parquet",
    "row groups": "parquet",
    "arrow stream": "arrow",
    "arrow file": "arrow",
    "text": "text",
}
"""Every kind of corpus the tests write, and the builder that reads it; none for files."""

STREAMS = 4
LONGEST = 64_000_000
"""data.longest_document by default, in UTF-8 bytes."""


def make_documents(count: int) -> list[str]:
    """Different one-line documents of very different lengths, a few of them twice."""
    rng = random.Random(count)
    words = ["def", "self", "état", "漢字", "😀", "\t", "  ", "x = 1", "\u2581", "<s>", "return"]
    made = [
        f"{i} " + " ".join(rng.choices(words, k=rng.choice((0, 1, 5, 30, 120))))
        for i in range(count - 3)
    ]
    return made + made[:3]


def write_corpus(kind: str, folder: Path, documents: list[str], **settings: object) -> DataConfig:
    """Write the documents as one of KINDS and return the config that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"streams": STREAMS, "shuffle_window": 8, "validation_fraction": 0.2} | settings
    if kind == "files":
        for i, text in enumerate(documents):
            (folder / f"{i:04}.txt").write_bytes(text.encode())
        return DataConfig(kind=SourceKind.files, files=str(folder / "**" / "*.txt"), **common)
    lines = "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in documents).encode()
    table = pa.table({"text": documents})
    if kind == "jsonl":
        (folder / "a.jsonl").write_bytes(lines)
    elif kind == "many jsonl":
        for i in range(3):
            part = lines.splitlines(keepends=True)[i::3]
            (folder / f"{i}.jsonl").write_bytes(b"".join(part))
    elif kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    elif kind == "jsonl.zst":
        (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    elif kind == "parquet":
        pq.write_table(table, folder / "a.parquet")
    elif kind == "many parquet":
        for i in range(STREAMS):
            part = pa.table({"text": documents[i::STREAMS]})
            pq.write_table(part, folder / f"{i}.parquet")
    elif kind == "row groups":
        pq.write_table(table, folder / "a.parquet", row_group_size=3)
    elif kind == "arrow stream":
        with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
    elif kind == "arrow file":
        with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif kind == "text":
        (folder / "a.txt").write_text("".join(text + "\n" for text in documents))
    files = [str(folder / "*")]
    return DataConfig(kind=SourceKind.dataset, dataset=KINDS[kind], data_files=files, **common)


def open_text(config: DataConfig, tokenizer: Tokenizer) -> TokenizedText:
    """The corpus that a config names, tokenized on the fly."""
    fraction = config.held_out_of_training
    return TokenizedText(
        open_source(config), tokenizer, fraction=fraction, longest=config.longest_document
    )


def prepare(config: DataConfig, tokenizer: Tokenizer, out: Path, shard_bytes: int = 3000) -> Index:
    """The same corpus as shards, many of them."""
    prepare_shards(
        open_source(config),
        tokenizer,
        out,
        workers=1,
        longest=config.longest_document,
        shard_bytes=shard_bytes,
    )
    return Index.load(lambda name: (out / name).read_bytes(), str(out))


def open_shards(
    config: DataConfig, tokenizer: Tokenizer, out: Path, **changed: object
) -> PreparedSource:
    """The shards of a folder, opened as they lie there, for a run with that config. `changed` are
    other arguments of PreparedSource."""

    def open_shard(name: str) -> ShardFile:
        fd = os.open(out / name, os.O_RDONLY)
        return ShardFile(fd, os.fstat(fd).st_size)

    settings = {
        "open_shard": open_shard,
        "ahead": lambda names: None,
        "name": "",
        "fraction": config.held_out_of_training,
        "window": config.shuffle_window,
        "order": Order.source,
        "on_bad_shard": OnBadShard.stop,
        "quarantine": Quarantine(),
    } | changed
    index = Index.load(lambda name: (out / name).read_bytes(), str(out))
    return PreparedSource(index, tokenizer=tokenizer, address=str(out), **settings)


def equal(a: Row, b: Row) -> bool:
    """Whether two rows are the same in all their parts."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def stream_documents(
    source: TokenSource, counts: list[int], tokenizer: Tokenizer, stream: int, length: int
) -> Iterator[list[str]]:
    """The documents that one stream's rows hold, a list for each epoch, of which `counts` says how
    many documents are trained on."""
    tokens: list[np.ndarray] = []
    made = rows(source, stream, STREAMS, 0, length)
    cursor = Cursor()
    while cursor.epoch < len(counts):
        row, cursor, _ = next(made)
        tokens.append(row.tokens[:-1])
    flat = np.concatenate(tokens)
    begins = np.flatnonzero(flat == tokenizer.bos_id)
    assert begins[0] == 0
    parts = iter(np.split(flat, begins[1:]))
    for count in counts:
        yield [_text(part, tokenizer) for part in itertools.islice(parts, count)]


def training_counts(source: Source, stream: int, epochs: int, fraction: float) -> list[int]:
    """How many documents of each of a stream's first epochs are trained on."""
    return [len(_training(source, stream, epoch, fraction)) for epoch in range(epochs)]


def _training(source: Source, stream: int, epoch: int, fraction: float) -> list[str]:
    texts = source.documents(stream, STREAMS, epoch, 0)
    return [text for text in texts if text and not is_held_out(text, fraction)]


def _text(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """One document's text, after a look at its two ends."""
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    return tokenizer.decode(ids[1:-1].tolist())


def stack(batch: Batch) -> torch.Tensor:
    """A batch as one tensor [b, 3, L], after a look at its types."""
    assert batch["input_ids"].dtype == batch["shift_labels"].dtype == torch.int64
    assert batch["segment_start"].dtype == torch.int32
    return torch.stack([batch[k] for k in ("input_ids", "shift_labels", "segment_start")], 1)
