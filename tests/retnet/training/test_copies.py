"""A copy is whole or none, the newest comes back, and the place holds no more than it should."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from data.uploads import Upload, open_upload
from retnet.training.copies import Copies
from retnet.training.housekeeping import checkpoints, name_of
from retnet.training.manifest import file_of, verify, write_manifest


def _make(folder: Path, step: int, content: str = "x") -> Path:
    """A small checkpoint."""
    path = folder / name_of(step)
    path.mkdir(parents=True)
    data = f"{content} {step}".encode()
    (path / file_of(0)).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    values = {"files": {file_of(0): entry}, "state": {"step": step}, "parameters": {}}
    write_manifest(path, values | {"layout": {}, "extra": {}})
    return path


class Gated(Upload):
    """A place that is slow: it takes no manifest before it is told to."""

    gate: threading.Event

    def put(self, file: Path, name: str) -> None:
        """As above."""
        if name.endswith("manifest.json"):
            assert self.gate.wait(10)
        super().put(file, name)


def test_a_copy_comes_back_as_it_was(tmp_path: Path) -> None:
    copies = Copies(open_upload(str(tmp_path / "there"), 5.0), 2, 0)
    assert copies.bring_newest(tmp_path / "again") is None
    alive = []
    for step in (1, 2):
        copies.send(_make(tmp_path / "run", step))
        copies.drain(alive=lambda: alive.append(time.monotonic()))
    assert len(alive) >= 2, "a wait that nobody is told of looks like a hang"
    assert [copied.problem for copied in copies.news()] == ["", ""] and copies.news() == []
    said = copies.bring_newest(tmp_path / "again")
    assert said == f"step-00000002 was brought from {tmp_path / 'there'}"
    copies.bring_newest(tmp_path / "again", before=1)
    for path in (found := checkpoints(tmp_path / "again")):
        verify(path)
    assert [path.name for path in found] == ["step-00000002", "step-00000001"]


def test_the_place_keeps_what_a_run_keeps_and_files_that_are_not_ours(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "step-00000001").mkdir(parents=True)
    (there / "step-00000001/rank-00000.safetensors").touch()  # of a copy that was broken off
    (there / "notes").mkdir()
    (there / "notes/manifest.json").touch()
    copies = Copies(open_upload(str(there), 5.0), 1, 4)
    for step in range(2, 8):
        copies.send(_make(tmp_path / "run", step))
        copies.drain()
    files = sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
    kept = [
        f"step-0000000{step}/{file}" for step in (4, 7) for file in ("manifest.json", file_of(0))
    ]
    assert files == ["notes/manifest.json", *kept]


def test_where_the_place_is_slow_the_newest_is_copied_and_none_is_deleted_before(
    tmp_path: Path,
) -> None:
    place = open_upload(str(tmp_path / "there"), 5.0)
    place.__class__, place.gate = Gated, threading.Event()
    copies = Copies(place, 0, 0)
    copies.send(_make(tmp_path / "run", 1))
    while copies.busy() != {"step-00000001"} or not (tmp_path / "there/step-00000001").exists():
        pass
    for step in (2, 3):
        copies.send(_make(tmp_path / "run", step))
    assert copies.busy() == {"step-00000001", "step-00000003"}
    place.gate.set()
    copies.drain(10)
    assert [copied.path.name for copied in copies.news()] == ["step-00000001", "step-00000003"]
    assert copies.busy() == set()


def test_a_damaged_copy_is_passed_over_and_none_that_is_good_is_an_error(tmp_path: Path) -> None:
    copies = Copies(open_upload(str(tmp_path / "there"), 5.0), 0, 0)
    for step in (1, 2):
        copies.send(_make(tmp_path / "run", step))
        copies.drain()
    (tmp_path / "there/step-00000002" / file_of(0)).write_bytes(b"?")
    said = copies.bring_newest(tmp_path / "again")
    assert said.startswith("step-00000001") and "step-00000002" in said
    (tmp_path / "there/step-00000001" / file_of(0)).unlink()
    with pytest.raises(RuntimeError, match="no copy in .* is good: .*step-00000002.*step-00000001"):
        copies.bring_newest(tmp_path / "third")
    assert checkpoints(tmp_path / "third") == []


def test_a_checkpoint_that_was_saved_again_is_copied_again(tmp_path: Path) -> None:
    copies = Copies(open_upload(str(tmp_path / "there"), 5.0), 0, 0)
    for run in ("first", "second"):
        copies.send(_make(tmp_path / run, 1, run))
        copies.drain()
    copies.bring_newest(tmp_path / "again")
    assert (tmp_path / "again/step-00000001" / file_of(0)).read_text() == "second 1"


def test_a_run_that_went_back_leaves_no_copy_of_what_it_left(tmp_path: Path) -> None:
    copies = Copies(open_upload(str(tmp_path / "there"), 5.0), 2, 0)
    for step in (2, 4, 6, 4):
        copies.send(_make(tmp_path / f"run-{step}-{len(list(tmp_path.iterdir()))}", step))
        copies.drain()
    assert sorted(path.name for path in (tmp_path / "there").iterdir() if any(path.iterdir())) == [
        "step-00000004"
    ]
    assert copies.bring_newest(tmp_path / "again").startswith("step-00000004")


def test_a_place_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "there").touch()  # a file, where a folder is needed
    copies = Copies(open_upload(str(tmp_path / "there"), 0.1), 0, 0)
    copies.send(_make(tmp_path / "run", 1))
    copies.drain()
    (copied,) = copies.news()
    assert copied.path.name == "step-00000001" and str(tmp_path / "there") in copied.problem
