"""The folder of a run's checkpoints: which are there, how one gets its name, which may go.

Only renames and deletions, in an order that a kill at any moment leaves whole checkpoints under
good names. It reads no checkpoint: that is manifest.py's.
"""

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from retnet.training.manifest import sync, write_synced

log = logging.getLogger(__name__)

LATEST = "latest"
_FINISHED = re.compile(r"step-\d{8}")


def name_of(step: int) -> str:
    """The folder's name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The inverse of `name_of`; None for a name of anything else."""
    return int(name.removeprefix("step-")) if _FINISHED.fullmatch(name) else None


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of `folder`, newest first; not yet verified."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path.name) is not None]
    return sorted(found, reverse=True)


def surplus(steps: Iterable[int], keep_last: int, keep_every: int) -> list[int]:
    """Those of `steps` that need not be kept: neither among the newest `keep_last` (0: all are)
    nor divisible by `keep_every` (0: none is)."""
    older = sorted(steps)[:-keep_last] if keep_last else []
    return [step for step in older if not (keep_every and step % keep_every == 0)]


def put_in_place(temporary: Path, final: Path) -> None:
    """Gives a whole and synced folder its name, and moves `latest` to it.

    One of the same name, from before a rollback, steps aside first: killed between the two renames,
    `remove_leftovers` takes it back.
    """
    folder = final.parent
    if final.exists():
        final.rename(final.with_name(f"{final.name}.old"))
    temporary.rename(final)
    sync(folder)
    try:
        write_synced(folder / f"{LATEST}.tmp", final.name)
        (folder / f"{LATEST}.tmp").replace(folder / LATEST)
        sync(folder)
    except OSError as error:  # it is for people: loading looks at the names themselves
        log.warning("%s still names an older checkpoint: %s", folder / LATEST, error)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed save or deletion left behind, and what a finished one replaced. What
    cannot be removed, in a folder that may only be read, is no checkpoint and is left."""
    try:
        for path in list(folder.glob("step-*.old")):
            if not path.with_suffix("").exists():  # killed between the two renames
                path.rename(path.with_suffix(""))
            else:
                _delete(path)
        for path in list(folder.glob("step-*.tmp")):
            _delete(path)
    except OSError as error:
        log.warning("%s keeps what an earlier save left behind: %s", folder, error)


def remove(path: Path) -> None:
    """Deletes a checkpoint; renamed first, so that no half of it is ever taken for one."""
    doomed = path.with_name(f"{path.name}.tmp")
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """A folder and all in it; of a link, to a checkpoint moved to another disk, the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
