"""A manifest that is not as it was written, or names what is not ours, is no manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from retnet.training.manifest import (
    file_of,
    read_manifest,
    replacing,
    verify,
    write_manifest,
)

CONTENT = b"0123456789"
ENTRY = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


def _make(folder: Path, **changed: Any) -> Path:
    """A checkpoint of two small files."""
    folder.mkdir()
    for rank in (0, 1):
        (folder / file_of(rank)).write_bytes(CONTENT)
    values: dict[str, Any] = {"files": {file_of(rank): ENTRY for rank in (0, 1)}, "state": {}}
    write_manifest(folder, values | {"parameters": {}, "layout": {}, "extra": {}} | changed)
    return folder


def test_what_was_written_is_read_and_verifies(tmp_path: Path) -> None:
    path = _make(tmp_path / "x", extra={"cursors": [1, 2]})
    verify(path)
    assert read_manifest(path)["extra"] == {"cursors": [1, 2]}


def test_a_file_is_checked_by_one_of_the_ranks_that_share_them(tmp_path: Path) -> None:
    path = _make(tmp_path / "x")
    (path / file_of(1)).write_bytes(CONTENT[::-1])
    verify(path, rank=0, world_size=2)
    with pytest.raises(
        RuntimeError, match=rf"{file_of(1)} has the SHA-256 [0-9a-f]{{64}}; .* says"
    ):
        verify(path, rank=1, world_size=2)


def test_a_shorter_or_missing_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = _make(tmp_path / "x")
    (path / file_of(0)).write_bytes(CONTENT[:-1])
    with pytest.raises(RuntimeError, match=f"{file_of(0)} has 9 bytes.* 10 bytes"):
        verify(path)
    (path / file_of(0)).unlink()
    with pytest.raises(RuntimeError, match=f"{file_of(0)} is missing.* 10 bytes"):
        verify(path)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "rank-00000.safetensors/../../x", "x.pt", "rank-0.safetensors"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = _make(tmp_path / "x", files={name: ENTRY})
    with pytest.raises(RuntimeError, match="no file of a checkpoint"):
        verify(path)


@pytest.mark.parametrize("files", [[], "x", {file_of(0): 3}, {file_of(0): {"bytes": 10}}])
def test_files_that_are_not_listed_as_ours_are_refused(tmp_path: Path, files: Any) -> None:
    path = _make(tmp_path / "x", files=files)
    with pytest.raises(RuntimeError, match="does not list its files"):
        verify(path)


def test_another_version_is_the_users_to_choose(tmp_path: Path) -> None:
    path = _make(tmp_path / "x", format=1)
    with pytest.raises(ValueError, match="format 1.*reads 2.*another name"):
        read_manifest(path)


def test_a_manifest_is_whole_or_none(tmp_path: Path) -> None:
    path = _make(tmp_path / "x")
    file = path / "manifest.json"
    text = file.read_text()
    damages = {
        "not valid JSON": text[:-1],
        "lacks its own checksum": json.dumps([1]),
        "has the SHA-256": text.replace('"bytes": 10', '"bytes": 11'),
    }
    for words, damaged in damages.items():
        file.write_text(damaged)
        with pytest.raises(RuntimeError, match=words):
            read_manifest(path)
    file.unlink()
    with pytest.raises(RuntimeError, match="manifest.json is missing; .* never finished"):
        read_manifest(path)


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with replacing(tmp_path / "export") as folder:
            folder.mkdir()
            (folder / content).touch()
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["second"]
    with pytest.raises(KeyError), replacing(tmp_path / "export"):
        raise KeyError
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["second"]
