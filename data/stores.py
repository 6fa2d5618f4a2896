"""Bytes from where shards live: S3-compatible stores, HTTP, the Hugging Face hub, or a folder.

fsspec does the transport. A store tries once and says what went wrong as a StoreError; trying again
is data/retry.py, keeping what came is data/cache.py.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:  # imported where they are used: text from this machine needs none of them
    from fsspec.asyn import AsyncFileSystem

PASSING = {408, 425, 429}
"""Statuses of the request's side after which the same request may still succeed."""
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class StoreError(RuntimeError):
    """A read that failed once.

    Its words are the cause ("429 Too Many Requests"), or where it is `permanent`, so that trying
    again cannot help, what follows the file's name in a sentence ("is not there (404)"). `status`
    is the HTTP status, None where there was none, and 404 for a folder's missing file too;
    `retry_after` the seconds that the server asked to wait.
    """

    def __init__(
        self,
        words: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        permanent: bool = False,
    ) -> None:
        super().__init__(words)
        self.status, self.retry_after, self.permanent = status, retry_after, permanent


class Store(Protocol):
    """A place that has files by name."""

    address: str
    """What it is called in sentences."""
    folder: Path | None
    """Where its files are read in place; None where they must be fetched."""

    def read(self, name: str) -> bytes:
        """The whole of a small file; StoreError when it does not come."""

    def fetch(self, name: str, to: Path) -> None:
        """Write the whole of a file to the path `to`, piece by piece; StoreError when it does not
        come, OSError when it cannot be written."""

    def close(self) -> None:
        """Give up this process's connections."""


def open_store(address: str, timeout: float) -> Store:
    """The store at s3://bucket/folder, http(s)://..., hf://datasets/user/name[@revision]/folder, or
    a local folder. Nothing is read yet.

    `timeout` is how many seconds may pass without a byte. Credentials and endpoints are taken as
    usual for each: AWS_* and AWS_ENDPOINT_URL, HF_TOKEN and HF_ENDPOINT. ValueError where the
    address is not one of these.
    """
    scheme, separator, rest = address.rstrip("/").partition("://")
    if not separator:
        return _Folder(address)
    if scheme == "s3":
        return _Remote(address, lambda name: f"{rest}/{name}", lambda: s3_filesystem(timeout))
    if scheme in ("http", "https"):
        parts = urlsplit(address)  # a signature behind the ? belongs to each file, and in no log
        folder = parts.path.rstrip("/")
        host = parts.netloc.rpartition("@")[2]  # nor does a name and password before the host
        return _Remote(
            urlunsplit((scheme, host, folder, "", "")),
            lambda name: urlunsplit(parts._replace(path=f"{folder}/{name}")),
            lambda: _http(timeout, {}),
        )
    if scheme == "hf":
        return _hub(address, timeout)
    raise ValueError(
        f"data.path={address} is no place that can be read: give a folder, s3://bucket/folder, "
        "http(s)://host/folder or hf://datasets/user/name/folder"
    )


class _Folder:
    """A local folder, read in place."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.folder: Path | None = Path(address).expanduser()

    def read(self, name: str) -> bytes:
        assert self.folder is not None
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise local_failure(error) from error

    def fetch(self, name: str, to: Path) -> None:
        to.write_bytes(self.read(name))

    def close(self) -> None:
        pass


class _Remote:
    """Files behind an fsspec filesystem, one instance of it in each process."""

    folder = None

    def __init__(
        self, address: str, path: Callable[[str], str], make: Callable[[], "AsyncFileSystem"]
    ) -> None:
        """`path` says where the filesystem finds a name; `make` makes the filesystem."""
        self.address, self._path, self._make = address, path, make
        # A filesystem's event loop does not survive a fork, and a child that let go of its parent's
        # would close the parent's connections: hence kept, and never touched.
        self._by_process: dict[int, AsyncFileSystem] = {}

    def read(self, name: str) -> bytes:
        try:
            return self._filesystem().cat_file(self._path(name))
        except Exception as error:
            raise failure(error) from error

    def fetch(self, name: str, to: Path) -> None:
        try:
            self._filesystem().get_file(self._path(name), str(to))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            raise failure(error) from error

    def close(self) -> None:
        self._by_process.pop(os.getpid(), None)

    def _filesystem(self) -> "AsyncFileSystem":
        filesystem = self._by_process.get(os.getpid())
        if filesystem is None:
            filesystem = self._by_process.setdefault(os.getpid(), self._make())
        return filesystem


def s3_filesystem(timeout: float) -> "AsyncFileSystem":
    """S3 or a store like it, each request made once and each file in one piece."""
    try:
        import s3fs
    except ImportError as error:
        raise ValueError("s3:// needs s3fs: pip install 'retnet[s3]'") from error
    times = {"connect_timeout": timeout, "read_timeout": timeout}
    filesystem = s3fs.S3FileSystem(
        config_kwargs={"retries": {"max_attempts": 0}, **times},
        max_concurrency=1,
        skip_instance_cache=True,
    )
    filesystem.retries = 1
    return filesystem


def _http(timeout: float, headers: dict[str, str]) -> "AsyncFileSystem":
    """Plain HTTP with these headers, through a proxy where the environment names one."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    times = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
    client = {"timeout": times, "headers": headers, "trust_env": True}
    return HTTPFileSystem(client_kwargs=client, skip_instance_cache=True)


def _hub(address: str, timeout: float) -> Store:
    """The hub over HTTP: each file has an address of its own, so that nothing is ever listed."""
    found = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(/.*)?", address.rstrip("/"))
    if not found:
        raise ValueError(
            f"data.path={address} is no dataset of the hub: write it as "
            "hf://datasets/user/name/folder or hf://datasets/user/name@revision/folder"
        )
    repository, revision, folder = found[1], found[2], (found[3] or "").strip("/")

    def url(name: str) -> str:
        from huggingface_hub import hf_hub_url

        endpoint = os.environ.get("HF_ENDPOINT")
        file = f"{folder}/{name}".lstrip("/")
        return hf_hub_url(
            repository, file, repo_type="dataset", revision=revision, endpoint=endpoint
        )

    def make() -> "AsyncFileSystem":
        from huggingface_hub.utils import build_hf_headers

        return _http(timeout, build_hf_headers())

    return _Remote(address.rstrip("/"), url, make)


def local_failure(error: OSError) -> StoreError:
    """What became of opening or reading a file on a disk; a network disk may recover."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return StoreError("is not there", status=404, permanent=True)
    words = f"{error.strerror or type(error).__name__}"
    if isinstance(error, PermissionError | IsADirectoryError):
        return StoreError(f"may not be read ({words})", status=403, permanent=True)
    return StoreError(words)


def failure(error: Exception) -> StoreError:
    """What became of one request, from whatever fsspec's filesystems raise."""
    status, headers = _answer(error)
    if status is not None:
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        said = f"{status} {phrase}".strip()
        if status >= 500 or status in PASSING:
            return StoreError(said, status=status, retry_after=_seconds_to_wait(headers))
        words = {401: "may not be read", 403: "may not be read", 404: "is not there"}
        return StoreError(
            f"{words.get(status, 'cannot be read')} ({said if status != 404 else 404})",
            status=status,
            permanent=True,
        )
    if isinstance(error, StoreError):
        return error
    name = type(error).__name__
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return StoreError("nothing came within data.timeout")
    if name in ("ClientPayloadError", "IncompleteRead", "ResponseStreamingError"):
        return StoreError("the body ended early")
    words = f"{name}: {error}".strip(": ")
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return StoreError(f"may not be read ({error})", status=401, permanent=True)
    return StoreError(words, permanent=isinstance(error, ValueError))


def _answer(error: Exception) -> tuple[int | None, Mapping[str, str]]:
    """(status, headers) of the response that is behind an error; None where there was none."""
    for source in (error, error.__cause__):
        response: Any = getattr(source, "response", None)
        if isinstance(response, dict) and "ResponseMetadata" in response:  # botocore
            answer = response["ResponseMetadata"]
            return answer.get("HTTPStatusCode"), answer.get("HTTPHeaders", {})
        if hasattr(source, "status") and hasattr(source, "request_info"):  # aiohttp
            return source.status, source.headers or {}
    return (404 if isinstance(error, FileNotFoundError) else None), {}


def _seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait: Retry-After in seconds or as a date, or, from the hub, the
    t of RateLimit (draft-ietf-httpapi-ratelimit-headers)."""
    given = {name.lower(): value for name, value in headers.items()}
    asked = given.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    limit = re.search(r"\bt=(\d+)", given.get("ratelimit", ""))
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return float(limit[1]) if limit else None
