"""A bounded folder of files by content, shared by all processes of a machine.

Each file is made by one process while the others wait for it, stays while anybody has it open, and
goes when room is needed and it was opened longest ago. The processes agree by flock, which the
kernel frees whatever becomes of them; so the folder must be on a local disk. Where the content
comes from, and whether it is right, is data/cache.py's.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class CacheFull(ValueError):
    """All of the cache is in use, and one file more is needed at the same time."""


class ShardFile(NamedTuple):
    """An open, verified shard. One of the cache stays in it until it is closed."""

    fd: int
    size: int
    locked: bool = False
    """Whether closing it must give it free."""

    def close(self) -> None:
        """Close it, and give it free."""
        _close(self.fd) if self.locked else os.close(self.fd)


class CacheFolder:
    """KEY.bin for what is whole, KEY-SIZE.part for what is on its way, and one lock.

    The lock of a .part is on the file itself, which is renamed when it is whole: what a killed
    process left has no lock and is free. Its name says how much room is taken for it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.path, self._limit = folder, limit_bytes

    def has(self, key: str) -> bool:
        """Whether a file is there and whole."""
        return self._whole(key).exists()

    def kept(self, key: str) -> ShardFile | None:
        """A file that is there, opened and thereby the youngest; None where it is not."""
        try:
            fd = os.open(self._whole(key), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        with suppress(PermissionError):  # another user's, whose age stays
            os.utime(fd)
        return ShardFile(fd, os.fstat(fd).st_size, locked=True)

    def forget(self, key: str, file: ShardFile) -> None:
        """Remove a file that is not what it should be, unless another is already in its place."""
        with self._alone():
            if _is_at(self._whole(key), file.fd):
                self._whole(key).unlink()

    def make(self, key: str, size: int, write: Callable[[Path], object]) -> ShardFile | None:
        """The file of `size` bytes that `write` puts at the path it is given, in room made for it.

        None where another process makes it, after a wait until that one is done or gone, so that
        the caller looks again. CacheFull when too much is in use; RuntimeError where the folder is
        of no use; what `write` raises.
        """
        part = self.path / f"{key}-{size}.part"
        with self._alone():
            fd = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            mine = _locked(fd) and _is_at(part, fd)  # it may have been dropped since it was opened
            if mine and not self.has(key):
                try:
                    self._make_room(part)
                except BaseException:
                    _drop(part, fd)
                    raise
        if not mine:
            fcntl.flock(fd, fcntl.LOCK_SH)
            _close(fd)
            return None
        if self.has(key):  # between the caller's look and the lock
            _drop(part, fd)
            return None
        try:
            write(part)
            with self._alone():
                part.rename(self._whole(key))  # unsynced: what a crash spoils, opening finds
            fcntl.flock(fd, fcntl.LOCK_SH)
            return ShardFile(fd, size, locked=True)
        except BaseException:
            _drop(part, fd)
            raise

    def _whole(self, key: str) -> Path:
        return self.path / f"{key}.bin"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else on this machine is in here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path / "folder.lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise RuntimeError(
                f"data.cache cannot keep shards in {self.path}: {error.strerror}; set data.cache "
                "to a folder of a local disk"
            ) from error
        try:
            yield
        finally:
            _close(fd)

    def _make_room(self, part: Path) -> None:
        """Remove the files opened longest ago until all, `part` in its full size included, are
        within the limit. CacheFull where that cannot be."""
        ages: dict[Path, float] = {}
        sizes: dict[Path, int] = {}
        for path in self.path.iterdir():
            if path.suffix == ".bin":
                with suppress(FileNotFoundError):
                    state = path.stat()
                    ages[path], sizes[path] = state.st_mtime, state.st_size
            elif path.suffix == ".part" and (path == part or not _removed(path)):
                sizes[path] = int(path.stem.partition("-")[2])
        over = sum(sizes.values()) - self._limit
        for path in sorted(ages, key=ages.__getitem__):
            if over > 0 and _removed(path):
                over -= sizes[path]
        if over > 0:
            raise CacheFull(
                "the cache is full of shards in use: data.cache_gigabytes="
                f"{self._limit / 1e9:g} and the next one needs {over / 1e9:.2g} more; raise "
                "data.cache_gigabytes, or take data.order=shards or fewer data.streams"
            )


def _locked(fd: int) -> bool:
    """Whether nobody had a file, which is locked now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    """Whether the file that was opened is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _drop(part: Path, fd: int) -> None:
    """Give up what was claimed, and wake who waits for it."""
    part.unlink(missing_ok=True)
    _close(fd)


def _removed(path: Path) -> bool:
    """Whether a file is gone: because nobody used it, or before."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # what failed to be made goes without asking
        return True
    try:
        if not _locked(fd):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        _close(fd)


def _close(fd: int) -> None:
    """Close a file and free its lock by hand: closing alone would leave that with the copy of the
    fd that a child has which was forked meanwhile."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
