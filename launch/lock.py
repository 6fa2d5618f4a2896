"""One run, one folder: a lock that dies with the process that holds it."""

import fcntl
from pathlib import Path
from typing import TextIO


def hold_folder(folder: Path) -> TextIO:
    """Takes the folder (made if missing) for this process, while the returned file is open.

    Raises ValueError where another process has it. A POSIX record lock: unlike flock's it is not
    handed on to worker processes, which may outlive a killed parent by seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(
            f"{folder} is in use by a run that is still at work; wait for it, stop it, or take "
            "another name=..."
        ) from error
    return file
