"""Copies of a run's checkpoints in a second place, and the way back from there.

A thread of rank 0 copies, so that neither the training nor the next save waits; where the place is
slow, the newest checkpoint is copied and those in between are not. A manifest is put last and taken
away first: a copy without one is no checkpoint. The place is given: this room knows no stores.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from retnet.training.housekeeping import name_of, put_in_place, step_of, surplus
from retnet.training.manifest import MANIFEST, read_manifest, verify

log = logging.getLogger(__name__)


class Place(Protocol):
    """Where files are kept by names with slashes; RuntimeError or OSError where it fails."""

    address: str
    """What it is called in sentences."""

    def put(self, file: Path, name: str) -> None:
        """Keep a copy of a file; half of one may stay where it fails."""

    def fetch(self, name: str, to: Path) -> None:
        """Write a file to the path `to`."""

    def names(self) -> list[str]:
        """All files that are there."""

    def remove(self, name: str) -> None:
        """Take a file away."""


class Copied(NamedTuple):
    """What became of a copy."""

    path: Path
    """The checkpoint that was copied."""
    seconds: float
    problem: str
    """"" where all went well."""


class Copies:
    """Sends checkpoints to a place and brings the newest back; rank 0 has one."""

    def __init__(self, place: Place, keep_last: int, keep_every: int) -> None:
        """The place keeps what `surplus` lets it keep, as the run's own folder does."""
        self._place, self._keep = place, (keep_last, keep_every)
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._current: Path | None = None
        self._found: list[Copied] = []
        self._thread: threading.Thread | None = None

    def send(self, path: Path) -> None:
        """Copies a finished checkpoint as soon as the copy under way is done, in place of one that
        still waits."""
        with self._changed:
            self._waiting = path
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def busy(self) -> set[str]:
        """The names of the checkpoints that are to stay until they are copied."""
        with self._changed:
            return {path.name for path in (self._current, self._waiting) if path is not None}

    def news(self) -> list[Copied]:
        """What was finished since the last call."""
        with self._changed:
            found, self._found = self._found, []
        return found

    def drain(
        self, timeout: float | None = None, alive: Callable[[], object] = lambda: None
    ) -> None:
        """Waits until nothing is left to be copied, for `timeout` seconds at most; calls `alive`
        at the beginning and whenever a file has arrived."""

        def done() -> bool:
            alive()
            return not (self._current or self._waiting)

        with self._changed:
            self._changed.wait_for(done, timeout)

    def bring_newest(self, folder: Path, before: int | None = None) -> str | None:
        """Puts the newest whole copy, of a step up to `before`, into `folder`, verified, and
        returns a sentence about it; None where there is none.

        Raises:
            RuntimeError: the place cannot be asked, or it has copies and none is whole.
        """
        steps = sorted(self._copied(), reverse=True)
        problems = []
        for step in [step for step in steps if before is None or step <= before]:
            try:
                self._bring(folder, name_of(step))
            except (RuntimeError, ValueError) as error:
                problems.append(str(error))
                log.warning("%s is no whole copy: %s", name_of(step), error)
                continue
            words = [f"{name_of(step)} was brought from {self._place.address}", *problems]
            return "; newer, and no whole copy: ".join(words)
        if problems:
            raise RuntimeError(f"no copy in {self._place.address} is good: {' '.join(problems)}")
        return None

    def _bring(self, folder: Path, name: str) -> None:
        temporary = folder / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self._place.fetch(f"{name}/{MANIFEST}", temporary / MANIFEST)
        for file in read_manifest(temporary)["files"]:
            self._place.fetch(f"{name}/{file}", temporary / file)
        verify(temporary)
        put_in_place(temporary, folder / name)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                self._current, self._waiting = self._waiting, None
                path = self._current
            began, problem = time.monotonic(), ""
            try:
                self._copy(path)
            except Exception as error:
                problem = str(error)
                log.warning("%s was not copied", path, exc_info=error)
            with self._changed:
                self._found.append(Copied(path, time.monotonic() - began, problem))
                self._current = None
                self._changed.notify_all()

    def _copy(self, path: Path) -> None:
        """One checkpoint, and then what the place need not keep any longer."""
        there = set(self._place.names())
        self._remove([name for name in there if name.startswith(f"{path.name}/")])
        for file in read_manifest(path)["files"]:
            self._place.put(path / file, f"{path.name}/{file}")
            with self._changed:
                self._changed.notify_all()
        self._place.put(path / MANIFEST, f"{path.name}/{MANIFEST}")
        # Later ones are of a future that the run went back from.
        whole = [step for step in self._copied() if name_of(step) <= path.name]
        kept = {name_of(step) for step in set(whole) - set(surplus(whole, *self._keep))}
        # Ours alone, and halves of copies that were broken off among them.
        folders = {name: name.partition("/")[0] for name in there}
        old = [name for name in there if step_of(folders[name]) is not None]
        self._remove([name for name in old if folders[name] not in kept])

    def _copied(self) -> list[int]:
        """The steps that have a manifest in the place."""
        names = [name.partition("/") for name in self._place.names()]
        steps = [step_of(folder) for folder, _, file in names if file == MANIFEST]
        return [step for step in steps if step is not None]

    def _remove(self, names: list[str]) -> None:
        """Manifests first."""
        for name in sorted(names, key=lambda name: (not name.endswith(MANIFEST), name)):
            self._place.remove(name)
