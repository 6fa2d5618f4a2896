"""Checkpoints that exist whole or not at all.

DeepSpeed writes its shards into `step-XXXXXXXX.tmp`; they are synced, checksummed and listed in
`manifest.json`, which is written last; then the folder is renamed and `latest` is moved. Loading
checks every byte against the manifest first and falls back to the newest good one. What the state
of a run is, is `state.py`'s to say.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from retnet.training.engine import prints_logged
from retnet.training.state import TrainState

MANIFEST = "manifest.json"
LATEST = "latest"
_SHARDS = "shards"  # the subfolder that DeepSpeed writes
_FINISHED = re.compile(r"step-\d{8}")


@dataclass
class CheckpointConfig:
    """How many checkpoints stay on disk."""

    keep_last: int = 2
    """Newest checkpoints to keep; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.keep_last < 0:
            raise ValueError(
                f"checkpoint.keep_last is {self.keep_last}; it must be 0 (all) or more."
            )


@dataclass(frozen=True)
class Loaded:
    """What a run goes on with; the same on every rank."""

    path: Path
    """The checkpoint that was loaded."""
    state: TrainState
    """Where the run stood."""
    extra: dict[str, Any]
    """What the caller stored beside it."""
    passed_over: list[str] = field(default_factory=list)
    """Newer checkpoints that were not good: one sentence each."""


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine,
    state: TrainState,
    folder: Path,
    config: dict[str, Any],
    extra: dict[str, Any] | None = None,
    keep_last: int = 2,
) -> Path:
    """Writes `folder/step-XXXXXXXX` and returns it; collective, all ranks give the same values.

    `config` and `extra` go into the manifest as JSON. A kill at any moment leaves the older
    checkpoints as they were. Older ones beyond `keep_last` are deleted after the new one has been
    read back and found good. A checkpoint of the same step is replaced.

    Raises:
        RuntimeError: what was read back is not what was written; the older ones are kept.
    """
    final = folder / f"step-{state.step:08d}"
    temporary = final.with_suffix(".tmp")
    if _first():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
    dist.barrier()
    with prints_logged():
        engine.save_checkpoint(str(temporary), tag=_SHARDS, save_latest=False)
    files = _describe_files(temporary)
    if _first():
        manifest = {
            "files": files,
            "state": state.as_dict(),
            "world_size": dist.get_world_size(),
            "stage": engine.zero_optimization_stage(),
            "dtype": str(next(engine.module.parameters()).dtype),
            "config": config,
            "extra": extra or {},
        }
        _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1))
        for path in [temporary / _SHARDS, temporary]:
            _sync(path)
        if final.exists():  # a run that was rolled back comes by this step again
            final.rename(final.with_suffix(".old"))
        temporary.rename(final)
        _sync(folder)
        _write_synced(folder / f"{LATEST}.tmp", final.name)
        (folder / f"{LATEST}.tmp").replace(folder / LATEST)
        _sync(folder)
        _remove_leftovers(folder)
    dist.barrier()
    older = [path for path in checkpoints(folder) if path.name != final.name]
    surplus = older[keep_last - 1 :] if keep_last else []
    if surplus:
        _agree(_problem(final, dist.get_rank(), dist.get_world_size()))
        if _first():
            for path in surplus:
                _remove(path)
    dist.barrier()
    return final


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, folder: Path) -> Loaded | None:
    """Loads the newest good checkpoint of `folder` into the engine; None if there is none.

    Collective. Nothing of a bad checkpoint is loaded; `Loaded.passed_over` names each and why.

    Raises:
        ValueError: it was made by another number of ranks, another ZeRO stage or dtype.
        RuntimeError: there are checkpoints, and none is good.
    """
    found: list[Any] = [None, None, None]
    if _first():
        if folder.is_dir():
            _remove_leftovers(folder)
        path, passed_over = newest_good(folder)
        manifest = read_manifest(path) if path else None
        found = [path, passed_over, manifest]
    dist.broadcast_object_list(found, src=0)
    path, passed_over, manifest = found
    if path is None and passed_over:
        raise RuntimeError(f"no checkpoint in {folder} is good: {' '.join(passed_over)}")
    if path is None:
        return None
    _check_layout(engine, path, manifest)
    with prints_logged():
        engine.load_checkpoint(str(path), tag=_SHARDS)
    return Loaded(path, TrainState.from_dict(manifest["state"]), manifest["extra"], passed_over)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of `folder`, newest first; not yet verified."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _FINISHED.fullmatch(path.name)]
    return sorted(found, reverse=True)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that does not."""
    passed_over = []
    for path in checkpoints(folder):
        problem = _problem(path, 0, 1)
        if problem is None:
            return path, passed_over
        passed_over.append(problem)
    return None, passed_over


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


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; RuntimeError if it is missing or no JSON."""
    file = path / MANIFEST
    if not file.is_file():
        raise RuntimeError(f"{file} is missing; the checkpoint was never finished.")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise RuntimeError(f"{file} is not valid JSON: {error}.") from error
    missing = {"files", "state", "world_size", "stage", "dtype", "extra"} - set(manifest)
    if missing:
        raise RuntimeError(f"{file} lacks {sorted(missing)}.")
    return manifest


def _problem(path: Path, rank: int, world_size: int) -> str | None:
    try:
        verify(path, rank, world_size)
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def _agree(problem: str | None) -> None:
    """Raises on every rank where any rank has a problem."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for rank, sentence in enumerate(problems):
        if sentence is not None:
            raise RuntimeError(f"rank {rank} read the checkpoint back: {sentence}")


def _check_layout(engine: deepspeed.DeepSpeedEngine, path: Path, manifest: dict[str, Any]) -> None:
    here = {
        "world_size": dist.get_world_size(),
        "stage": engine.zero_optimization_stage(),
        "dtype": str(next(engine.module.parameters()).dtype),
    }
    remedies = {
        "world_size": "start the run on that many processes",
        "stage": "set engine.stage to it",
        "dtype": "set engine.dtype to it",
    }
    for key, value in here.items():
        if manifest[key] != value:
            raise ValueError(
                f"{path} was made with {key} {manifest[key]} and this run has {value}; "
                f"{remedies[key]}, or give the run another name."
            )


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Syncs every file below `folder` and lists its size and checksum, shared among the ranks."""
    dist.barrier()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    mine = {}
    for name in names[dist.get_rank() :: dist.get_world_size()]:
        _sync(folder / name)
        size = (folder / name).stat().st_size
        mine[name] = {"bytes": size, "sha256": _checksum(folder / name)}
    parts: list[dict[str, dict[str, Any]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {name: entry for part in parts for name, entry in sorted(part.items())}


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_synced(file: Path, text: str) -> None:
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Removes what a killed save or deletion left behind, and what a finished one replaced."""
    for path in folder.glob("step-*.old"):
        if not path.with_suffix("").exists():  # killed between the two renames
            path.rename(path.with_suffix(""))
            continue
        shutil.rmtree(path)
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Deletes a checkpoint; renamed first, so that no half of it is ever taken for one."""
    doomed = path.with_suffix(".tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _first() -> bool:
    return dist.get_rank() == 0
