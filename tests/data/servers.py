"""Real servers on loopback, S3 (moto) and HTTP, that can be told what to do wrong and count."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from werkzeug.serving import make_server

from data.stores import Store, open_store

Headers = list[tuple[str, str]]
Answer = tuple[str, Headers, Iterable[bytes]]
Fault = Callable[[str, Headers, bytes], Answer]
"""From the right answer (status, headers, body) to the one that is sent."""

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}


def answer(status: int, **headers: str) -> Fault:
    """A bare status; underscores in the headers' names are dashes."""
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda *_: (f"{status} Fault", [*given, ("Content-Length", "0")], [b""])


def truncate(status: str, headers: Headers, body: bytes) -> Answer:
    """Half of the body, then the end of the connection."""
    return status, headers, [body[: len(body) // 2]]


def flip(status: str, headers: Headers, body: bytes) -> Answer:
    """One wrong byte in the middle."""
    middle = len(body) // 2
    return status, headers, [body[:middle], bytes([body[middle] ^ 1]), body[middle + 1 :]]


def drip(status: str, headers: Headers, body: bytes) -> Answer:
    """A slow store: the body in ten pieces with a pause before each, in all 0.8 seconds."""

    def pieces() -> Iterator[bytes]:
        size = -(-len(body) // 10)
        for start in range(0, len(body), size):
            time.sleep(0.08)
            yield body[start : start + size]

    return status, headers, pieces()


@dataclass
class Faults:
    """A WSGI app around another one: keeps the next faults, and what was asked for."""

    app: Callable
    coming: list[Fault | None] = field(default_factory=list)
    """Faults of the next reads, first first; None for one that goes well."""
    once: dict[str, Fault] = field(default_factory=dict)
    """Faults of the next read of a path that ends so."""
    always: dict[str, Fault] = field(default_factory=dict)
    """Faults of every read of a path that ends so."""
    reads: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    """The Authorization that each read came with."""
    released: threading.Event = field(default_factory=threading.Event)

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            return self.app(environ, start_response)
        path = environ["PATH_INFO"]
        self.reads.append(path)
        self.tokens.append(environ.get("HTTP_AUTHORIZATION"))
        fault = self._fault(path)
        if fault is None:
            return self.app(environ, start_response)
        said: list = []
        body = b"".join(
            self.app(environ, lambda status, headers, *_: said.extend((status, headers)))
        )
        status, headers, pieces = fault(said[0], said[1], body)
        start_response(status, headers)
        return pieces

    def _fault(self, path: str) -> Fault | None:
        if self.coming:
            return self.coming.pop(0)
        for end in self.once:
            if path.endswith(end):
                return self.once.pop(end)
        return next((fault for end, fault in self.always.items() if path.endswith(end)), None)

    def stall(self, status: str, headers: Headers, body: bytes) -> Answer:
        """A fault: half of the body, and then nothing until reset()."""

        def pieces() -> Iterator[bytes]:
            yield body[: len(body) // 2]
            self.released.wait(20)

        return status, headers, pieces()

    def reset(self) -> None:
        self.coming.clear()
        self.once.clear()
        self.always.clear()
        self.reads.clear()
        self.tokens.clear()
        self.released.set()
        self.released = threading.Event()


@dataclass
class Server:
    """One running server, its faults, and how to put a file on it or take it away (None)."""

    url: str
    faults: Faults
    put: Callable[[str, bytes | None], object]


def _serve(app: Callable) -> tuple[str, Faults]:
    """Serve an app until this process ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faults = Faults(app)
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.port}", faults


@functools.cache
def http_server() -> Server:
    """Files by path; one server for all tests of a process."""
    files: dict[str, bytes] = {}

    def app(environ: dict, start_response: Callable) -> list[bytes]:
        body = files.get(environ["PATH_INFO"].lstrip("/"))
        status = "404 Not Found" if body is None else "200 OK"
        start_response(status, [("Content-Length", str(len(body or b"")))])
        return [body or b""]

    def put(path: str, data: bytes | None) -> None:
        files.pop(path, None) if data is None else files.update({path: data})

    return Server(*_serve(app), put)


@functools.cache
def s3_server() -> Server:
    """moto's server with one bucket; one for all tests of a process."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    url, faults = _serve(DomainDispatcherApplication(create_backend_app))
    names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
    client = boto3.client("s3", endpoint_url=url, **dict(zip(names, KEYS.values(), strict=True)))
    client.create_bucket(Bucket=BUCKET)

    def put(path: str, data: bytes | None) -> None:
        if data is None:
            client.delete_object(Bucket=BUCKET, Key=path)
        else:
            client.put_object(Bucket=BUCKET, Key=path, Body=data)

    return Server(url, faults, put)


@dataclass
class Place:
    """One folder on one server, as a store sees it."""

    address: str
    server: Server
    folder: str
    """The folder's path on the server."""

    def put(self, name: str, data: bytes | None) -> None:
        """Write a file, or remove it (None)."""
        self.server.put(f"{self.folder}/{name}", data)

    def reads(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(path.endswith(f"/{name}") for path in self.server.faults.reads)

    def store(self, timeout: float = 5.0) -> Store:
        return open_store(self.address, timeout)


PLACES = ("s3", "http", "hub")


def make_place(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The folder `name` on one of PLACES, with the environment that leads there, without faults."""
    server = s3_server() if kind == "s3" else http_server()
    server.faults.reset()
    if kind == "s3":
        for key, value in (KEYS | {"AWS_ENDPOINT_URL": server.url}).items():
            monkeypatch.setenv(key, value)
        return Place(f"s3://{BUCKET}/{name}", server, name)
    if kind == "hub":
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        folder = f"datasets/user/texts/resolve/main/{name}"
        return Place(f"hf://datasets/user/texts/{name}", server, folder)
    return Place(f"{server.url}/files/{name}", server, f"files/{name}")
