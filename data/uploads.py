"""Files sent to a store, and brought back: an S3-compatible one, or a folder on another disk.

What the files are is the caller's to know (a run's checkpoints). Reading is data/stores.py's; as
there, fsspec does the transport, and every request is tried again for a while by data/retry.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.retry import retry
from data.stores import NO_SPACE, StoreError, failure, local_failure, open_store, s3_filesystem

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")


class Upload:
    """A folder of a store that can be written."""

    def __init__(
        self, address: str, root: str, make: Callable[[], "AbstractFileSystem"], timeout: float
    ) -> None:
        """`root` is where the filesystem finds the folder."""
        self.address, self._root, self._timeout = address, root, timeout
        self._make, self._made = make, None
        self._reads = open_store(address, timeout)

    def put(self, file: Path, name: str) -> None:
        """Sends a file, and asks how long it is there.

        Raises:
            StoreError: it did not arrive.
            OSError: the file cannot be read.
        """
        size = file.stat().st_size

        def send() -> None:
            self._filesystem().put_file(str(file), self._path(name))
            if (found := self._filesystem().size(self._path(name))) != size:
                raise StoreError(f"{found} bytes arrived of {size}")

        self._try(send, name, "could not be sent")

    def fetch(self, name: str, to: Path) -> None:
        """Writes a file to the path `to`; StoreError when it does not come."""
        self._try(lambda: self._reads.fetch(name, to), name, "could not be read")

    def names(self) -> list[str]:
        """All files below the folder, by their names with slashes; StoreError without an answer."""

        def find() -> list[str]:
            self._filesystem().invalidate_cache()
            return self._filesystem().find(self._root)

        found = self._try(find, "the list", "could not be read")
        return sorted(path.removeprefix(self._root).lstrip("/") for path in found)

    def remove(self, name: str) -> None:
        """Takes a file away; StoreError where it stays."""
        self._try(
            lambda: self._filesystem().rm_file(self._path(name)), name, "could not be removed"
        )

    def _try(self, call: Callable[[], T], name: str, failed: str) -> T:
        def once() -> T:
            try:
                return call()
            except StoreError:
                raise
            except Exception as error:
                # S3's filesystem makes OSErrors too: what it was asked is behind them
                local = isinstance(error, OSError) and self._reads.folder is not None
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise StoreError(f"{failed} ({error.strerror})", permanent=True) from error
                raise (local_failure(error) if local else failure(error)) from error

        what = f"{name} of {self.address}"
        words = f"{failed} within checkpoint.copy_timeout"
        return retry(once, what, budget=self._timeout, failed=words)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _filesystem(self) -> "AbstractFileSystem":
        if self._made is None:
            self._made = self._make()
        return self._made


def open_upload(address: str, timeout: float) -> Upload:
    """The folder at s3://bucket/folder, or a local one, to be written to. Nothing is asked yet.

    `timeout` is how many seconds may pass without an answer, and for which a request is tried
    again. Credentials and endpoints are taken as `open_store` takes them. ValueError where the
    address is not one of these.
    """
    scheme, separator, rest = address.rstrip("/").partition("://")
    if not separator and address.startswith(("s3:", "gs:", "http:", "https:")):
        raise ValueError(
            f"checkpoint.copy_to={address}: an address has two slashes, as s3://bucket/folder"
        )
    if not separator:
        folder = Path(address).expanduser().absolute()
        return Upload(str(folder), str(folder), _folders, timeout)
    if scheme == "s3" and not set(rest) & set("@?"):  # keys in an address would be told with it
        return Upload(address.rstrip("/"), rest, lambda: s3_filesystem(timeout), timeout)
    raise ValueError(
        f"checkpoint.copy_to={scheme}://... is no place that can be written to: give "
        "s3://bucket/folder or a folder; keys belong into the environment"
    )


def _folders() -> "AbstractFileSystem":
    """Folders on a disk, made as files need them."""
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(auto_mkdir=True)
