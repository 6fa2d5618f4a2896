"""The newest whole checkpoint is gone on from, and nothing of a bad one is loaded."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from retnet.training.checkpoint import newest_good
from retnet.training.housekeeping import checkpoints
from retnet.training.manifest import file_of
from tests.retnet.training.processes import run


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of processes with one member, this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds when it loads from copies of a run with the checkpoints 2 and 3, which
    were damaged in several ways."""
    root = tmp_path_factory.mktemp("loads")
    run("saved", 1, root, module="workers_saving", runs={"two": {"steps": [1, 2, 3]}})
    for name in ("truncated", "flipped", "missing", "all bad", "leftovers", "older"):
        shutil.copytree(root / "two", root / name)
    _truncate(_file(root / "truncated", 3))
    _flip_a_bit(_file(root / "flipped", 3))
    _file(root / "missing", 3).unlink()
    for step in (2, 3):
        _flip_a_bit(_file(root / "all bad", step))
    left = root / "leftovers" / "checkpoints"
    (left / "step-00000004.0a1b.tmp").mkdir()
    (left / "step-00000003").rename(left / "step-00000003.old")
    manifest = root / "older/checkpoints/step-00000003/manifest.json"
    digest = hashlib.sha256(
        b'{"files": {}}'
    ).hexdigest()  # whole, and from before there were formats
    manifest.write_text(json.dumps({"files": {}, "sha256": digest}))
    (root / "empty").mkdir()
    names = ("two", "truncated", "flipped", "missing", "all bad", "leftovers", "older", "empty")
    runs = [str(root / name) for name in names]
    found = run("loaded", 1, root, module="workers_saving", runs=runs)[0]
    return {Path(path).name: result for path, result in found.items()} | {"root": root}


def _file(folder: Path, step: int) -> Path:
    return folder / f"checkpoints/step-{step:08d}" / file_of(0)


def _truncate(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def _flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_the_newest_is_loaded_with_all_that_was_stored_beside_it(loads: dict[str, Any]) -> None:
    loaded = loads["two"]["loaded"]
    assert loaded.path.name == "step-00000003" and loaded.state.step == 3
    assert loaded.extra == {"cursors": [1, 2]} and loaded.passed_over == []
    assert loaded.was is None and loaded.words == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("truncated", "bytes; its manifest says"), ("flipped", "SHA-256"), ("missing", "is missing")],
)
def test_the_older_checkpoint_is_used_where_the_newest_is_damaged(
    loads: dict[str, Any], name: str, words: str
) -> None:
    loaded = loads[name]["loaded"]
    assert loaded.state.step == 2
    (sentence,) = loaded.passed_over
    assert f"step-00000003/{file_of(0)}" in sentence and words in sentence


def test_nothing_of_a_bad_checkpoint_is_loaded(loads: dict[str, Any]) -> None:
    found = loads["all bad"]
    assert found["error"].startswith("LoadError: no checkpoint in ")
    assert "step-00000002" in found["error"] and "step-00000003" in found["error"]
    assert not found["moved"]


def test_an_older_versions_checkpoint_is_refused_and_nothing_is_loaded(
    loads: dict[str, Any],
) -> None:
    assert loads["older"]["error"].startswith("ValueError") and not loads["older"]["moved"]
    assert "format 1" in loads["older"]["error"] and "another name" in loads["older"]["error"]


def test_an_empty_folder_loads_nothing(loads: dict[str, Any]) -> None:
    assert loads["empty"] == {"loaded": None, "error": None, "moved": False}


def test_leftovers_are_removed_and_an_interrupted_replacement_is_undone(
    loads: dict[str, Any],
) -> None:
    assert loads["leftovers"]["loaded"].state.step == 3
    names = sorted(path.name for path in (loads["root"] / "leftovers/checkpoints").iterdir())
    assert names == ["latest", "step-00000002", "step-00000003"]


def test_without_a_manifest_there_is_no_checkpoint(
    loads: dict[str, Any], tmp_path: Path, alone: None
) -> None:
    folder = Path(shutil.copytree(loads["root"] / "two", tmp_path / "run")) / "checkpoints"
    (folder / "step-00000003/manifest.json").unlink()
    path, passed_over = newest_good(checkpoints(folder))
    assert path is not None and path.name == "step-00000002"
    assert "manifest.json is missing" in passed_over[0]
