"""One checkpoint on its way to the disk: a thread of each rank, from copied numbers to a name.

A thread says what became of its file by a note beside it, `rank-00001.json`, and rank 0's thread
reads the notes: no collective is used, so the training's own are not disturbed. Nothing here looks
at an engine; what fails is kept as a sentence, and never raised in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from retnet.training.copies import Copies
from retnet.training.housekeeping import (
    checkpoints,
    put_in_place,
    remove,
    remove_leftovers,
    step_of,
    surplus,
)
from retnet.training.manifest import file_of, sync, verify_file, write_manifest, write_synced
from retnet.training.tensor_file import write_tensors

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds between two looks for the notes of others
_NOTE = 1024  # bytes; room that a note takes before there is anything to say


class Writing:
    """The save of one step on one rank."""

    def __init__(
        self,
        temporary: Path,
        final: Path,
        *,
        rank: int,
        world_size: int,
        patience: float,
        keep: tuple[int, int],
        copies: Copies | None = None,
    ) -> None:
        """`temporary` exists and gets the name `final`; `keep` is (keep_last, keep_every);
        `patience` the seconds that rank 0 waits for the notes of the others."""
        self.final, self.problem, self.seconds = final, "", 0.0
        self.stall, self.heard = 0.0, False  # kept here for who waits and tells
        self._temporary, self._rank, self._world_size = temporary, rank, world_size
        self._patience, self._keep, self._copies = patience, keep, copies
        self._abandoned = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self, tensors: dict[str, Tensor], arrived: Callable[[], object], manifest: dict[str, Any]
    ) -> None:
        """Begins to write `tensors`, in host memory once `arrived` returns; they must not change
        until the thread has ended. `manifest` lacks the files; rank 0's counts."""
        what = (tensors, arrived, manifest)
        # A daemon: a run that dies does not wait for a file that it will not name.
        self._thread = threading.Thread(target=self._run, args=what, name="save", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `problem`, "" where all went well, and `seconds` are known. On other ranks than
        0 they are about this rank's file alone."""
        return self._thread is not None and not self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Waits until the thread has ended, for `timeout` seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)

    def abandon(self) -> None:
        """Waits for nobody any longer; what was not named by now never will be."""
        self._abandoned.set()

    def _run(
        self, tensors: dict[str, Tensor], arrived: Callable[[], object], manifest: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        try:
            self._write(tensors, arrived)
            if self._rank == 0:
                self._finish(manifest)
        except Exception as error:
            self.problem = cause(error)
            log.warning("%s was not saved", self.final, exc_info=error)
            if self._rank == 0:  # gives its room back at once
                shutil.rmtree(self._temporary, ignore_errors=True)
            else:  # a name may find room where no byte does, and rank 0 need not wait
                with suppress(OSError):
                    (self._temporary / file_of(self._rank)).with_suffix(".json").touch()
        self.seconds = time.monotonic() - began

    def _write(self, tensors: dict[str, Tensor], arrived: Callable[[], object]) -> None:
        """This rank's file, read back, and its note."""
        file = self._temporary / file_of(self._rank)
        note = file.with_suffix(".json.tmp")
        write_synced(note, " " * _NOTE)  # so that a disk which is full later can still be told of
        try:
            arrived()
            said = write_tensors(file, tensors)
            _forget(file)
            verify_file(file, said)
        except (OSError, RuntimeError) as error:
            log.warning("%s was not written", file, exc_info=error)
            file.unlink(missing_ok=True)
            said = {"problem": cause(error)}
        with note.open("r+b") as stream:  # in place: what it needs, it has
            stream.write(json.dumps(said).encode()[:_NOTE])
            stream.flush()
            os.fsync(stream.fileno())
        note.rename(file.with_suffix(".json"))

    def _finish(self, manifest: dict[str, Any]) -> None:
        """Rank 0's: the manifest once every rank's file is there, the name, and then the room."""
        notes = [self._temporary / f"{file_of(rank)}" for rank in range(self._world_size)]
        notes = [note.with_suffix(".json") for note in notes]
        files = {file_of(rank): note for rank, note in enumerate(self._read(notes))}
        for note in notes:
            note.unlink()
        write_manifest(self._temporary, {"files": files, **manifest})
        sync(self._temporary)
        put_in_place(self._temporary, self.final)
        try:
            self._make_room()
        except OSError as error:  # the new one stands all the same
            log.warning("an older checkpoint could not be removed: %s", error)
        if self._copies is not None:
            self._copies.send(self.final)

    def _read(self, notes: list[Path]) -> list[dict[str, Any]]:
        """What the ranks wrote, in their order; RuntimeError where one could not."""
        deadline = time.monotonic() + self._patience
        found: list[dict[str, Any]] = []
        while len(found) < len(notes):
            if notes[len(found)].exists():
                # An empty one is of a rank that could not even write its note.
                said = notes[len(found)].read_bytes() or b'{"problem": "nothing can be written"}'
                found.append(json.loads(said))
                if problem := found[-1].get("problem"):
                    raise RuntimeError(f"{problem} (rank {len(found) - 1})")
            elif self._abandoned.is_set():
                raise RuntimeError("the run ended before every rank had written its file")
            elif time.monotonic() > deadline:
                raise RuntimeError(
                    f"rank {len(found)} did not write its file within {self._patience:g} seconds"
                )
            else:
                time.sleep(_POLL)
        return found

    def _make_room(self) -> None:
        """Deletes what need not be kept, but for what is being copied: that goes next time. Later
        ones, which the run passed over since they are not good, keep no place of a good one."""
        folder = self.final.parent
        remove_leftovers(folder)
        found = [path for path in checkpoints(folder) if path.name <= self.final.name]
        paths = {step_of(path.name): path for path in found}
        busy = self._copies.busy() if self._copies is not None else set()
        for step in surplus(paths, *self._keep):
            if paths[step].name not in busy:
                remove(paths[step])


def cause(error: BaseException) -> str:
    """What went wrong in words, without a number that only a machine knows."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def _forget(file: Path) -> None:
    """Asks the system to drop its copy of a synced file, so that reading it asks the disk."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
