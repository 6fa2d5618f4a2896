"""One run, one folder: a lock that dies with the process that holds it."""

import fcntl
import os
import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import TextIO

NAME = "lock"
# Not in the lock's own file: a process that closes any handle of that lets its lock go.
MARK = "session"
FLOCK = "hhqqi4x"
"Linux's struct flock on 64 bits: type, whence, start, length, process."


def hold_folder(folder: Path) -> TextIO:
    """Takes the folder (made if missing) for this process, while the returned file is open, and
    marks it with a word of this session's (`mark_of`).

    Raises ValueError where another process has it, or where it cannot be written. A POSIX record
    lock: unlike flock's it is not handed on to worker processes, which may outlive a killed parent
    by seconds; and NFS keeps it between machines.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / NAME).open("a")
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}): it needs room and the right to write, "
            "or take another name=..."
        ) from error
    if not _locked(file):
        file.close()
        raise ValueError(
            f"{folder} is in use by a run that is still at work; wait for it, stop it, or take "
            "another name=..."
        )
    with suppress(OSError):  # a full disk: a run may still go on there
        (folder / MARK).write_text(secrets.token_hex(8))
    return file


def is_held(folder: Path) -> bool:
    """Whether a run is at work in the folder. Not for the process that holds it: asking would let
    its own lock go.

    The lock is not taken for that: a run that begins at this moment would be refused.
    """
    wanted = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (folder / NAME).open() as file:
            found = fcntl.fcntl(file, fcntl.F_GETLK, wanted)
    except OSError:
        return False
    return struct.unpack(FLOCK, found)[0] != fcntl.F_UNLCK


def mark_of(folder: Path) -> str:
    """The word that the session at work in the folder left there; "" where there is none."""
    try:
        return (folder / MARK).read_text()
    except OSError:
        return ""


def _locked(file: TextIO) -> bool:
    """Takes the lock if it is free; whether it did."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
