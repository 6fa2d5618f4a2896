"""Small corpora on disk, one writer for each kind of source, and rows read back into documents."""

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zstandard

from data.loader import Batch
from data.order import is_held_out
from data.sources import DataConfig, Source, SourceKind
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


def stream_documents(
    source: Source, tokenizer: Tokenizer, stream: int, epochs: int, fraction: float, length: int
) -> Iterator[list[str]]:
    """The documents that one stream's rows hold, one list for each of the first epochs."""
    tokens: list[np.ndarray] = []
    counts = [len(_training(source, stream, epoch, fraction)) for epoch in range(epochs)]
    made = rows(source, tokenizer, stream, STREAMS, 0, length, fraction)
    cursor = Cursor()
    while cursor.epoch < epochs:
        row, cursor = next(made)
        tokens.append(row.tokens[:-1])
    flat = np.concatenate(tokens)
    begins = np.flatnonzero(flat == tokenizer.bos_id)
    assert begins[0] == 0
    parts = iter(np.split(flat, begins[1:]))
    for count in counts:
        yield [_text(part, tokenizer) for part in itertools.islice(parts, count)]


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
