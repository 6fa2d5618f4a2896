"""Checkpoints that exist whole or not at all.

DeepSpeed writes its shards into `step-XXXXXXXX.tmp`; they are synced, checksummed and listed in
`manifest.json`, which is written last; then the folder is renamed and `latest` is moved. Loading
checks every byte against the manifest first and falls back to the newest good one. What the state
of a run is, is `state.py`'s to say.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from retnet.training.manifest import (
    describe_files,
    read_manifest,
    sync,
    verify,
    write_manifest,
    write_synced,
)
from retnet.training.state import TrainState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

LATEST = "latest"
_CONFIGURED = ("betas", "eps", "weight_decay")  # of the optimizer; the rate is set each step
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
    engine: DeepSpeedEngine,
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
    engine.save_checkpoint(str(temporary), tag=_SHARDS, save_latest=False)
    files = describe_files(temporary)
    if _first():
        manifest = {
            "files": files,
            "state": state.as_dict(),
            "layout": _layout(engine),
            "config": config,
            "extra": extra or {},
        }
        write_manifest(temporary, manifest)
        for path in [temporary / _SHARDS, temporary]:
            sync(path)
        if final.exists():  # a run that was rolled back comes by this step again
            final.rename(final.with_suffix(".old"))
        temporary.rename(final)
        sync(folder)
        write_synced(folder / f"{LATEST}.tmp", final.name)
        (folder / f"{LATEST}.tmp").replace(folder / LATEST)
        sync(folder)
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


def load_checkpoint(
    engine: DeepSpeedEngine,
    folder: Path,
    check: Callable[[Path, TrainState, dict[str, Any]], None] | None = None,
) -> Loaded | None:
    """Loads the newest good checkpoint of `folder` into the engine; None if there is none.

    Collective. Nothing of a bad checkpoint is loaded; `Loaded.passed_over` names each and why.
    `check` is given the path, the state and the extra of the one that is to be loaded, before any
    weight is, and raises the caller's ValueError where the run must not go on from it.

    Raises:
        ValueError: it was made by another number of ranks, another ZeRO stage or dtype.
        RuntimeError: there are checkpoints, and none is good.
    """
    found: list[Path] = []
    if _first():
        if folder.is_dir():
            _remove_leftovers(folder)
        found = checkpoints(folder)
    dist.broadcast_object_list(names := [found], src=0)
    path, passed_over = newest_good(names[0])
    if path is None and passed_over:
        raise RuntimeError(f"no checkpoint in {folder} is good: {' '.join(passed_over)}")
    if path is None:
        return None
    manifest = read_manifest(path)
    _check_layout(engine, path, manifest["layout"])
    state = TrainState.from_dict(manifest["state"])
    if check is not None:
        check(path, state, manifest["extra"])
    groups = engine.optimizer.param_groups
    asked_for = [{key: group[key] for key in _CONFIGURED} for group in groups]
    engine.load_checkpoint(str(path), tag=_SHARDS)
    for group, values in zip(engine.optimizer.param_groups, asked_for, strict=True):
        group.update(values)  # the shards bring the numbers of the run that saved them
    return Loaded(path, state, manifest["extra"], passed_over)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of `folder`, newest first; not yet verified."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _FINISHED.fullmatch(path.name)]
    return sorted(found, reverse=True)


def newest_good(paths: list[Path]) -> tuple[Path | None, list[str]]:
    """The first of `paths` (newest first) that verifies, and a sentence for each one before it.

    Collective: the ranks share the reading, since hundreds of gigabytes take one of them long.
    """
    passed_over = []
    for path in paths:
        problems: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, _problem(path, dist.get_rank(), len(problems)))
        problem = next(filter(None, problems), None)
        if problem is None:
            return path, passed_over
        passed_over.append(problem)
    return None, passed_over


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


def _layout(engine: DeepSpeedEngine) -> dict[str, Any]:
    """What must be the same for DeepSpeed to load its own shards."""
    return {
        "world_size": dist.get_world_size(),
        "stage": engine.zero_optimization_stage(),
        "dtype": str(next(engine.module.parameters()).dtype).removeprefix("torch."),
        "optimizer": type(engine.optimizer).__name__,
        "parameters": len(list(engine.module.parameters())),
    }


def _check_layout(engine: DeepSpeedEngine, path: Path, saved: dict[str, Any]) -> None:
    remedies = {
        "world_size": "start the run on that many processes",
        "stage": "set engine.stage to it",
        "dtype": "set engine.dtype to it",
        "optimizer": "set engine.offload_optimizer as it was",
        "parameters": "set kernels.fused_projections and model.* as they were",
    }
    for key, value in _layout(engine).items():
        if saved.get(key, value) != value:  # older checkpoints say less
            raise ValueError(
                f"{path} was made with {key} {saved[key]} and this run has {value}; "
                f"{remedies[key]}, or give the run another name."
            )


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
