"""Prepared shards at an address: their index, the cache that fetches them, and their tokenizer.

What a shard holds and in which order its documents are read is data/prepared.py's.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from data.cache import ShardCache
from data.config import DataConfig, Order
from data.index import Index
from data.retry import retry
from data.stores import open_store
from data.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)


class Shelf:
    """Opens the index at once, and a shard when it is asked for."""

    def __init__(self, data: DataConfig, address: str) -> None:
        """ValueError where no finished shards are there, RuntimeError where nobody answers."""
        self._budget = data.retry_seconds
        self._store = open_store(address, data.timeout)
        self.address = self._store.address  # without what only the store may know
        self.index = Index.load(self._read, self.address)
        self.cache = ShardCache(
            Path(data.cache).expanduser() / "shards",
            self._store,
            self.index.shards,
            int(data.cache_gigabytes * 1e9),
            data.retry_seconds,
        )

    def describe(self) -> str:
        """One line for the log."""
        return f"shards of {self.address}, {self.index.describe()}"

    def warn_of_thrashing(self, data: DataConfig) -> None:
        """In the log: where an epoch would fetch the same shards again and again."""
        size, room = self.index.size / 1e9, data.cache_gigabytes
        singly = self.index.layout.by_document and data.order is Order.source
        if singly and self._store.folder is None and size > room:
            log.warning(
                "data.order=source over %d shards made from single files reads all of them at "
                "once, %.1f GB against data.cache_gigabytes=%g: take data.order=shards",
                len(self.index.shards),
                size,
                room,
            )

    def tokenizer(self, cache: Path) -> Tokenizer:
        """The tokenizer that made the shards, kept in the cache; ValueError where its files are not
        what the index says."""
        folder = cache / "tokenizers" / self.index.tokenizer_fingerprint
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.{os.getpid()}")
            partial.mkdir(parents=True)
            for name, entry in self.index.tokenizer_files.items():
                blob = self._read(f"tokenizer/{name}")
                if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
                    shutil.rmtree(partial)
                    raise ValueError(
                        f"tokenizer/{name} of {self.address} is not what index.json says: put it "
                        "back, or prepare the shards again"
                    )
                (partial / name).write_bytes(blob)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                shutil.rmtree(partial)  # another run was quicker
        return load_tokenizer(folder, self.index.tokenizer_fingerprint)

    def _read(self, name: str) -> bytes:
        what = f"{name} of {self.address}"
        return retry(lambda: self._store.read(name), what, budget=self._budget)
