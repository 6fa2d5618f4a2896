"""Which checkpoint a run goes on from: the newest whole one, verified before anything is loaded.

Checkpoints exist whole or not at all, and hold nothing that only their makers' layout understands.
saver.py writes them, manifest.py knows what is in one, restore.py puts it into an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from retnet.training.copies import Copies
from retnet.training.housekeeping import checkpoints, remove_leftovers, step_of
from retnet.training.manifest import read_manifest, verify
from retnet.training.restore import restore
from retnet.training.saver import layout
from retnet.training.state import TrainState

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger(__name__)

Check = Callable[[Path, TrainState, dict[str, Any]], None]
"""Is given the path, the state and the extra of a checkpoint that is to be loaded; raises
ValueError where the run must not go on from it."""


class LoadError(RuntimeError):
    """There is something to go on from, and none of it can be loaded; the sentence says all."""


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
    was: dict[str, Any] | None = None
    """The layout of the run that made it, where this one has another."""
    words: str = ""
    """What else is to be said: another layout, or that it was brought from elsewhere."""


def load_checkpoint(
    engine: DeepSpeedEngine,
    folder: Path,
    check: Check | None = None,
    *,
    before: int | None = None,
    copies: Copies | None = None,
) -> Loaded | None:
    """Loads the newest good checkpoint of `folder`, of whatever layout, into the engine; None if
    there is none.

    Collective. Nothing of a bad one is loaded; `Loaded.passed_over` names each and why. `before`:
    of steps up to this one alone. `copies`, on rank 0: where the newest is brought from if the
    folder has no good one.

    Raises:
        ValueError: it is of another model or version, or `check` says no; nothing was loaded.
        LoadError: there are checkpoints, and none is good; or the copies cannot be asked.
    """
    if _first() and folder.is_dir():
        remove_leftovers(folder)
    path, passed_over = newest_good(_found(folder, before))
    words = []
    if path is None:
        words = _bring(folder, before, copies)
        path, _ = newest_good(_found(folder, before)) if words else (None, [])
    if path is None and passed_over:
        raise LoadError(
            f"no checkpoint in {folder} is good: {' '.join(passed_over)} Bring a good one there, "
            "or begin anew under another name=..."
        )
    if path is None:
        return None
    manifest = read_manifest(path)
    state = TrainState.from_dict(manifest["state"])
    if check is not None:
        check(path, state, manifest["extra"])
    restore(engine, path, manifest)
    was, now = manifest["layout"], layout(engine)
    if was == now:
        return Loaded(path, state, manifest["extra"], passed_over, words=" ".join(words))
    words.append(f"made by {_in_words(was)}, goes on with {_in_words(now)}")
    return Loaded(path, state, manifest["extra"], passed_over, was, "; ".join(words))


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


def _found(folder: Path, before: int | None) -> list[Path]:
    """What rank 0 finds, newest first; collective."""
    names: list[list[Path]] = [[]]
    if _first():
        names = [
            [
                path
                for path in checkpoints(folder)
                if before is None or (step_of(path.name) or 0) <= before
            ]
        ]
    dist.broadcast_object_list(names, src=0)
    return names[0]


def _bring(folder: Path, before: int | None, copies: Copies | None) -> list[str]:
    """What rank 0 says of a copy that it brought into `folder`; collective."""
    said: list[Any] = ["", ""]
    if _first() and copies is not None:
        try:
            said[0] = copies.bring_newest(folder, before) or ""
        except (RuntimeError, OSError) as error:
            log.warning("no copy was brought", exc_info=error)
            said[1] = str(error)
    dist.broadcast_object_list(said, src=0)
    if said[1]:
        raise LoadError(said[1])
    return [said[0]] if said[0] else []


def _problem(path: Path, rank: int, world_size: int) -> str | None:
    try:
        verify(path, rank, world_size)
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def _in_words(layout: dict[str, Any]) -> str:
    ranks = layout["world_size"]
    return f"{ranks} rank{'s' * (ranks > 1)} at stage {layout['stage']} in {layout['dtype']}"


def _first() -> bool:
    return dist.get_rank() == 0
