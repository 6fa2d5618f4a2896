"""What is in a checkpoint: its manifest, and whether the files are still those that it lists.

Plain files and checksums; it knows neither engines nor which checkpoint is the newest. Nothing that
is read here is executed, and no name in a manifest leads out of its folder.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 2
"""Of the files beside a manifest; the first, DeepSpeed's own shards, is no longer read."""
_NEEDED = {"format", "files", "state", "parameters", "layout", "extra", "sha256"}
_OURS = re.compile(r"rank-\d{5}\.safetensors")


def file_of(rank: int) -> str:
    """The name of what a rank writes into a checkpoint."""
    return f"rank-{rank:05d}.safetensors"


def verify(path: Path, rank: int = 0, world_size: int = 1) -> None:
    """Checks the files of a checkpoint against its manifest; each rank can take its share.

    Raises:
        RuntimeError: a sentence that names the file, what was expected and what was found.
    """
    files = sorted(read_manifest(path)["files"].items())
    for name, expected in files[rank::world_size]:
        verify_file(path / name, expected)


def verify_file(file: Path, expected: dict[str, Any]) -> None:
    """Reads a file and compares it with what was written, {"bytes", "sha256"}; RuntimeError with
    both where they differ."""
    if not file.is_file():
        raise RuntimeError(f"{file} is missing; its manifest lists {expected['bytes']} bytes.")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise RuntimeError(f"{file} has {size} bytes; its manifest says {expected['bytes']} bytes.")
    checksum = _checksum(file)
    if checksum != expected["sha256"]:
        raise RuntimeError(
            f"{file} has the SHA-256 {checksum}; its manifest says {expected['sha256']}."
        )


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a checkpoint with a checksum of its own; JSON types only."""
    manifest = {"format": FORMAT, **manifest}
    write_synced(path / MANIFEST, json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        RuntimeError: it is missing, not as it was written, or names files that are not ours.
        ValueError: it is whole, and of another version of this program.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise RuntimeError(f"{file} is missing; the checkpoint was never finished.")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        raise RuntimeError(f"{file} lacks its own checksum.")
    expected, found = manifest.pop("sha256"), _digest(manifest)
    if found != expected:
        raise RuntimeError(f"{file} has the SHA-256 {found}; it says itself {expected}.")
    if (version := manifest.get("format", 1)) != FORMAT:
        raise ValueError(
            f"{path} has the format {version}, of another version of this program, and this one "
            f"reads {FORMAT}; finish the run with the version that began it, or start under "
            "another name."
        )
    missing = _NEEDED - {"sha256"} - set(manifest)
    if missing:
        raise RuntimeError(f"{file} lacks {sorted(missing)}.")
    files = manifest["files"]
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(each, dict) and {"bytes", "sha256"} <= set(each) for each in entries):
        raise RuntimeError(f"{file} does not list its files as a checkpoint does.")
    strangers = [name for name in files if not _OURS.fullmatch(name)]
    if strangers:
        raise RuntimeError(f"{file} lists {strangers[0]!r}, which is no file of a checkpoint.")
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_synced(file: Path, text: str) -> None:
    """Writes a text and waits until its bytes are on the disk."""
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` once all is written."""
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
