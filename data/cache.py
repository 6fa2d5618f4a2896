"""One door through which every shard comes as a local, verified file, wherever it lives.

Shards of a local folder are read in place; others are fetched into the cache's folder first, whose
rules are in data/cache_folder.py. What a shard holds is not known here; how often a store is asked
is data/retry.py.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import xxhash

from data.cache_folder import CacheFolder, ShardFile
from data.quarantine import BadShard
from data.retry import retry
from data.stores import Store, StoreError, local_failure

log = logging.getLogger(__name__)

Sleep = Callable[[float], object]

FETCHERS = 2
PIECE = 1 << 20  # bytes read at a time
# Seconds. A wait for a shard that is longer than this is said in the log.
LONG_WAIT = 1.0


class ShardEntry(NamedTuple):
    """What the index says about one shard; `name` is its file's name below the index."""

    name: str
    size: int
    """Bytes."""
    xxh3_128: str
    """Hexadecimal xxh3_128 of the whole file."""
    documents: int
    tokens: int


class ShardCache:
    """The shards of one index, local and verified.

    It may be made before a fork and used after it, in the parent and in its children.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        shards: Iterable[ShardEntry],
        limit_bytes: int,
        retry_seconds: float,
    ) -> None:
        """`folder` is the cache's own and is made at need, `limit_bytes` bounds what lies in it,
        `retry_seconds` is for how long a shard is tried again."""
        self._folder, self._store = CacheFolder(folder, limit_bytes), store
        self._shards = {shard.name: shard for shard in shards}
        self._retry_seconds = retry_seconds
        self._fetchers: _Fetchers | None = None

    def open(self, name: str) -> ShardFile:
        """One shard, fetched if need be; the caller closes it.

        BadShard in one sentence when it cannot be had or is not what the index says; CacheFull when
        there is no room for it; RuntimeError when the cache's folder is of no use.
        """
        entry = self._shards[name]
        began = time.monotonic()
        try:
            file = self._in_place(entry) if self._store.folder else self._cached(entry, time.sleep)
        except StoreError as error:
            raise BadShard(str(error), _remedy(error, entry)) from error
        waited = time.monotonic() - began
        if waited > LONG_WAIT:
            log.warning("waited %.1f s for %s", waited, self._words(entry))
        return file

    def ahead(self, names: list[str]) -> None:
        """Begin to fetch shards that will be opened soon, by threads of this process.

        What goes wrong is said when the shard is opened.
        """
        if self._store.folder:
            return
        names = [name for name in names if not self._folder.has(self._shards[name].xxh3_128)]
        if not names:
            return
        if self._fetchers is None or self._fetchers.process != os.getpid():
            self._fetchers = _Fetchers(self._bring)
        self._fetchers.ask(names)

    def close(self) -> None:
        """Stop fetching ahead and give up the store's connections."""
        if self._fetchers is not None and self._fetchers.process == os.getpid():
            self._fetchers.stop()
        self._fetchers = None
        self._store.close()

    def _in_place(self, entry: ShardEntry) -> ShardFile:
        """A local store's own file."""

        def look() -> ShardFile:
            assert self._store.folder is not None
            try:
                fd = os.open(self._store.folder / entry.name, os.O_RDONLY)
                try:
                    wrong = _difference(fd, entry)
                except OSError:
                    os.close(fd)
                    raise
            except OSError as error:
                raise local_failure(error) from error
            if wrong:
                os.close(fd)
                raise StoreError(wrong, permanent=True)
            return ShardFile(fd, entry.size)

        return retry(look, self._words(entry), budget=self._retry_seconds)

    def _cached(self, entry: ShardEntry, sleep: Sleep) -> ShardFile:
        """The cache's file, made by this process or another one if it is not there."""
        began = time.monotonic()

        def write(path: Path) -> None:
            # Waiting for another process's attempts counts: ranks do not wait one after another.
            self._fetch(entry, path, time.monotonic() - began, sleep)

        while True:
            file = self._kept(entry)
            if file is None:
                file = self._folder.make(entry.xxh3_128, entry.size, write)
            if file is not None:
                return file

    def _kept(self, entry: ShardEntry) -> ShardFile | None:
        """The cache's file, if it is there and this disk did not spoil it."""
        file = self._folder.kept(entry.xxh3_128)
        wrong = "" if file is None else _difference(file.fd, entry)
        if file is not None and wrong:
            log.warning("%s in the cache %s; fetching it again", self._words(entry), wrong)
            self._folder.forget(entry.xxh3_128, file)
            file.close()
            return None
        return file

    def _fetch(self, entry: ShardEntry, to: Path, spent: float, sleep: Sleep) -> None:
        """Bring a shard to a path; what is not what the index says is fetched once more."""
        times = 0

        def fetch() -> None:
            nonlocal times
            self._store.fetch(entry.name, to)
            with to.open("rb") as file:
                wrong = _difference(file.fileno(), entry)
            if wrong:
                times += 1
                again = " (fetched twice)" if times > 1 else ""
                raise StoreError(f"{wrong}{again}", permanent=times > 1)

        try:
            budget = self._retry_seconds
            retry(fetch, self._words(entry), budget=budget, spent=spent, sleep=sleep)
        except OSError as error:
            raise RuntimeError(
                f"{self._words(entry)} cannot be written into {self._folder.path}: "
                f"{error.strerror}; make room there, lower data.cache_gigabytes or set data.cache "
                "to a folder of another disk"
            ) from error

    def _bring(self, name: str, sleep: Sleep) -> None:
        """Have a shard in the cache."""
        self._cached(self._shards[name], sleep).close()

    def _words(self, entry: ShardEntry) -> str:
        return f"{entry.name} of {self._store.address}"


class _Fetchers:
    """Threads that fetch what is asked for, each name once at a time, until they are stopped."""

    def __init__(self, bring: Callable[[str, Sleep], None]) -> None:
        self.process = os.getpid()
        self._bring = bring
        self._wanted: SimpleQueue[str] = SimpleQueue()
        self._asked: set[str] = set()
        self._stopped = threading.Event()
        for _ in range(FETCHERS):  # daemons: a run that ends does not wait for a download
            threading.Thread(target=self._work, daemon=True).start()

    def ask(self, names: list[str]) -> None:
        for name in names:
            if name not in self._asked:
                self._asked.add(name)
                self._wanted.put(name)

    def stop(self) -> None:
        self._stopped.set()
        for _ in range(FETCHERS):
            self._wanted.put("")

    def _work(self) -> None:
        while not self._stopped.is_set():
            name = self._wanted.get()
            if name:
                try:
                    self._bring(name, self._wait)
                except Exception as error:
                    log.debug("not fetched ahead: %s: %s", name, error)
                self._asked.discard(name)

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise StoreError("is no longer wanted", permanent=True)


def checksum(fd: int) -> str:
    """Hexadecimal xxh3_128 of a whole file."""
    hasher, offset, piece = xxhash.xxh3_128(), 0, bytearray(PIECE)
    while got := os.preadv(fd, [piece], offset):
        hasher.update(memoryview(piece)[:got])
        offset += got
    return hasher.hexdigest()


def _difference(fd: int, entry: ShardEntry) -> str:
    """How a file differs from what the index says, empty where it does not."""
    size = os.fstat(fd).st_size
    if size != entry.size:
        return f"is not what its index says: {size:,} bytes instead of {entry.size:,}"
    found = checksum(fd)
    if found != entry.xxh3_128:
        return (
            f"is not what its index says: xxh3_128 {found[:8]}.. instead of {entry.xxh3_128[:8]}.."
        )
    return ""


def _remedy(error: StoreError, entry: ShardEntry) -> str:
    """What to do about a shard that cannot be had."""
    if not error.permanent:
        first = "raise data.retry_seconds"
    elif error.status in (401, 403):
        first = "check the credentials and rights"
    else:
        first = "put the shard back"
    return (
        f"{first}, or data.on_bad_shard=quarantine goes on without its {entry.documents:,} "
        "documents"
    )
