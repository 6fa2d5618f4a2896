"""The part of C13 that is about prepared shards: how fast a node reads rows from them, and how much
memory many streams take. What the model's step needs is in feeding.py."""

import itertools
import json
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data.config import DataConfig, SourceKind
from data.documents import LONGEST_LINE
from data.index import NAME, Index
from data.opening import open_data, open_text
from data.order import Layout
from data.prepare import prepare_shards
from data.shards import TABLE, Encoded, ShardWriter, token_type
from data.share import Share
from data.sources import open_source
from data.tokenizer import Tokenizer, TokenizerConfig
from tests.benchmarks.measure import Comparison, Contender, Settings

RANKS = 2
ROWS = 8
# A process of its own: what it prints is its peak of resident memory, in MiB.
PROGRAM = """
import sys
from pathlib import Path
from data.config import DataConfig, SourceKind
from data.opening import open_data
from data.share import Share
from data.tokenizer import TokenizerConfig

kind, where, model, size, streams = sys.argv[1:]
places = {"dataset": {"dataset": "json", "data_files": [where]}, "prepared": {"path": where}}
settings = {"streams": int(streams), "num_workers": 0, "validation_fraction": 0.1}
data = DataConfig(kind=SourceKind(kind), **settings, **places[kind])
share = Share(512, int(streams), int(streams))
loader = open_data(data, TokenizerConfig(model, int(size)), seed=0, share=share)
steps = loader.steps(0)
for _ in range(10):
    next(steps)
status = Path("/proc/self/status").read_text()  # getrusage remembers the parent's memory
print(float(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def write_shards(out: Path, tokenizer: Tokenizer, tokens: int, length: int) -> None:
    """Shards of random tokens in documents of `length` tokens on average."""
    rng = np.random.default_rng(0)
    dtype = token_type(tokenizer.vocab_size)
    writer, shards, made = ShardWriter(out, dtype, 64 << 20), [], 0
    while made < tokens:
        lengths = rng.geometric(1 / length, 4096) + 2
        table = np.zeros(len(lengths), TABLE)
        table["end"] = ends = np.cumsum(lengths)
        table["digest"], table["bytes"] = rng.integers(0, 1 << 63, len(ends)), 4 * lengths
        ids = rng.integers(3, tokenizer.vocab_size, ends[-1]).astype(dtype)
        ids[ends - 1], ids[ends - lengths] = tokenizer.eos_id, tokenizer.bos_id
        shards += writer.add(Encoded(ids, table))
        made += len(ids)
    shards += writer.close()
    documents = sum(shard.documents for shard in shards)
    index = Index(
        dtype=f"u{dtype.itemsize}",
        bytes=4 * made,
        refused={},
        rules={"longest_document": 1 << 26, "longest_line": LONGEST_LINE},
        source={"fingerprint": "random", "words": "random"},
        tokenizer={"fingerprint": tokenizer.fingerprint, "files": {}},
        layout=Layout(False, np.array([documents // 64] * 64 + [documents % 64])),
        shards=shards,
    )
    (out / NAME).write_text(index.dump())


class Node:
    """Ranks in processes of their own, each with its loader, that take steps when they are told."""

    def __init__(self, data: DataConfig, tokenizer: TokenizerConfig, length: int) -> None:
        self._pipes: list[Connection] = []
        fork = multiprocessing.get_context("fork")
        for rank in range(RANKS):
            mine, its = fork.Pipe()
            share = Share(length, RANKS * ROWS, ROWS, rank, RANKS)
            fork.Process(target=_serve, args=(its, data, tokenizer, share)).start()
            its.close()
            self._pipes.append(mine)
        self.take(2)

    def take(self, steps: int) -> None:
        """So many steps on every rank at the same time."""
        for pipe in self._pipes:
            pipe.send(steps)
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        """End the ranks."""
        for pipe in self._pipes:
            pipe.send(None)
            pipe.close()


def _serve(pipe: Connection, data: DataConfig, tokenizer: TokenizerConfig, share: Share) -> None:
    loader = open_data(data, tokenizer, seed=0, share=share)
    steps = loader.steps(0)
    while (count := pipe.recv()) is not None:
        for _ in range(count):
            next(steps)
        pipe.send(count)
    loader.close()


def reading(settings: Settings, data: DataConfig, config: TokenizerConfig) -> Iterator[Comparison]:
    """C13: rows from shards on a node of two ranks, beside rows of the text they were made from."""
    time, turn = settings.size(2048, 64), settings.size(200, 2)
    with TemporaryDirectory() as folder, ExitStack() as ends:
        places = {
            "its shards": Path(folder, "text"),
            "shards of short documents": Path(folder, "b"),
        }
        source, tokenizer = open_text(data, config)
        longest = data.longest_document
        prepare_shards(source, tokenizer, places["its shards"], workers=RANKS, longest=longest)
        tokenizer.export(Path(folder, "tokenizer"))
        model = TokenizerConfig(f"{folder}/tokenizer/tokenizer.model", tokenizer.vocab_size)
        places["shards of short documents"].mkdir()
        write_shards(
            places["shards of short documents"], tokenizer, settings.size(10**8, 10**5), 600
        )
        configs = {name: _prepared(path, data) for name, path in places.items()}
        nodes = {
            name: ends.enter_context(closing(Node(one, model, time)))
            for name, one in {"text": data, **configs}.items()
        }
        contenders = {
            name: Contender(
                partial(node.take, turn if name != "text" else max(1, turn // 40)),
                base=name == "text",
                parts=RANKS * ROWS * (turn if name != "text" else max(1, turn // 40)),
            )
            for name, node in nodes.items()
        }
        yield Comparison(
            f"one row of {time} tokens on two ranks: {time / 50e3:.3f} ms are 50 million tokens/s",
            contenders,
        )


def _prepared(path: Path, data: DataConfig) -> DataConfig:
    fraction, streams = data.validation_fraction, data.streams
    return DataConfig(
        kind=SourceKind.prepared, path=str(path), validation_fraction=fraction, streams=streams
    )


def remembering(
    settings: Settings, data: DataConfig, config: TokenizerConfig
) -> Iterator[Comparison]:
    """C13: memory of one process that reads many streams and tokenizes by itself. It depends on the
    streams and hardly on how much text there is, so that little of it will do."""
    streams, size = settings.size(64, 2), settings.size(5 << 20, 60_000)
    source, tokenizer = open_text(data, config)
    text = "".join(text for _, text in itertools.islice(source.in_order(), 200))
    rng = random.Random(0)
    with TemporaryDirectory() as folder:
        for number in range(streams):
            with Path(folder, f"{number}.jsonl").open("w") as file:
                while file.tell() < size:
                    start = rng.randrange(len(text))
                    part = text[start : start + 50 + int(rng.expovariate(1 / 3000))]
                    file.write(json.dumps({"text": part}) + "\n")
        files = f"{folder}/*.jsonl"
        jsonl = DataConfig(SourceKind.dataset, dataset="json", data_files=[files], streams=streams)
        out = Path(folder, "shards")
        longest = data.longest_document
        prepare_shards(open_source(jsonl), tokenizer, out, workers=RANKS, longest=longest)
        model = str(out / "tokenizer" / "tokenizer.model")

        def peak(kind: str, where: str) -> float:
            words = [kind, where, model, str(tokenizer.vocab_size), str(streams)]
            command = [sys.executable, "-c", PROGRAM, *words]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(done.stdout)

        contenders = {
            "text": Contender(partial(peak, "dataset", files), base=True),
            "its shards": Contender(partial(peak, "prepared", str(out))),
        }
        yield Comparison(f"a process that reads {streams} streams", contenders, unit="MiB")
