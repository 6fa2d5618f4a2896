"""What was sent is there, whole; what was not is said, in a sentence, after trying for a while."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from data.stores import StoreError
from data.uploads import Upload, open_upload
from tests.data.servers import KEYS, s3_server

CONTENT = bytes(range(256)) * 50


@pytest.fixture(params=["s3", "folder"])
def upload(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Upload:
    """An empty place of either kind, and a file `x` to send."""
    (tmp_path / "x").write_bytes(CONTENT)
    if request.param == "folder":
        return open_upload(str(tmp_path / "there"), 2.0)
    server = s3_server()
    server.faults.reset()
    for key, value in (KEYS | {"AWS_ENDPOINT_URL": server.url}).items():
        monkeypatch.setenv(key, value)
    return open_upload(f"s3://bucket/{tmp_path.name}", 2.0)


class Refusing:
    """A WSGI app around another: so many requests that write are refused."""

    def __init__(self, app: Callable, times: int) -> None:
        self.app, self.times, self.seen = app, times, 0

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            self.seen += 1
            if self.seen <= self.times:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
        return self.app(environ, start_response)


def test_what_was_sent_comes_back_is_listed_and_goes(upload: Upload, tmp_path: Path) -> None:
    assert upload.names() == []
    for name in ("a/x", "a/y", "b/x"):
        upload.put(tmp_path / "x", name)
    assert upload.names() == ["a/x", "a/y", "b/x"]
    upload.fetch("a/y", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT
    upload.remove("a/y")
    assert upload.names() == ["a/x", "b/x"]
    with pytest.raises(StoreError, match=f"a/y of {upload.address} is not there"):
        upload.fetch("a/y", tmp_path / "back")


def test_a_file_is_replaced(upload: Upload, tmp_path: Path) -> None:
    upload.put(tmp_path / "x", "x")
    (tmp_path / "x").write_bytes(b"short")
    upload.put(tmp_path / "x", "x")
    upload.fetch("x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"short"


@pytest.mark.parametrize("upload", ["s3"], indirect=True)
def test_a_refused_write_is_tried_again_for_a_while(
    upload: Upload, tmp_path: Path, monkeypatch
) -> None:
    faults = s3_server().faults
    monkeypatch.setattr(faults, "app", refusing := Refusing(faults.app, 1))
    upload.put(tmp_path / "x", "x")
    assert refusing.seen == 2 and upload.names() == ["x"]
    refusing.times = 10**6
    words = f"y of {upload.address} could not be sent within checkpoint.copy_timeout=2: 503"
    with pytest.raises(StoreError, match=words):
        upload.put(tmp_path / "x", "y")
    assert upload.names() == ["x"]


@pytest.mark.parametrize(
    "address", ["http://host/x", "hf://datasets/a/b", "gs://bucket/x", "s3://key:secret@bucket/x"]
)
def test_a_place_that_takes_no_files_is_refused_with_those_that_do(address: str) -> None:
    with pytest.raises(ValueError, match="checkpoint.copy_to=.* s3://bucket/folder") as refused:
        open_upload(address, 2.0)
    assert "secret" not in str(refused.value)
