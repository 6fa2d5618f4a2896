"""What is in a checkpoint: its manifest, and whether the files are still those that it lists.

Plain files and checksums; it knows neither engines nor which checkpoint is the newest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

MANIFEST = "manifest.json"
_NEEDED = {"files", "state", "layout", "extra", "sha256"}


def verify(path: Path, rank: int = 0, world_size: int = 1) -> None:
    """Checks the files of a checkpoint against its manifest; each rank can take its share.

    Raises:
        RuntimeError: a sentence that names the file, what was expected and what was found.
    """
    files = sorted(read_manifest(path)["files"].items())
    for name, expected in files[rank::world_size]:
        file = path / name
        if not file.is_file():
            raise RuntimeError(f"{file} is missing; its manifest lists {expected['bytes']} bytes.")
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise RuntimeError(
                f"{file} has {size} bytes; its manifest says {expected['bytes']} bytes."
            )
        checksum = _checksum(file)
        if checksum != expected["sha256"]:
            raise RuntimeError(
                f"{file} has the SHA-256 {checksum}; its manifest says {expected['sha256']}."
            )


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a checkpoint with a checksum of its own; JSON types only."""
    write_synced(path / MANIFEST, json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; RuntimeError if it is missing or not as it was written."""
    file = path / MANIFEST
    if not file.is_file():
        raise RuntimeError(f"{file} is missing; the checkpoint was never finished.")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{file} is not valid JSON: {error}.") from error
    missing = _NEEDED - set(manifest)
    if missing:
        raise RuntimeError(f"{file} lacks {sorted(missing)}.")
    expected, found = manifest.pop("sha256"), _digest(manifest)
    if found != expected:
        raise RuntimeError(f"{file} has the SHA-256 {found}; it says itself {expected}.")
    return manifest


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Syncs every file below `folder` and lists its size and checksum, shared among the ranks."""
    dist.barrier()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    mine = {}
    for name in names[dist.get_rank() :: dist.get_world_size()]:
        sync(folder / name)
        size = (folder / name).stat().st_size
        mine[name] = {"bytes": size, "sha256": _checksum(folder / name)}
    parts: list[dict[str, dict[str, Any]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {name: entry for part in parts for name, entry in sorted(part.items())}


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
