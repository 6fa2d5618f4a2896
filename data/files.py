"""Documents from files on disk, one file a document, with every byte of text kept as it is.

It decodes and orders; it does not split, filter or tokenize. A file that is empty or no UTF-8 is
refused: it is given as an empty document that says why, so that ordinals stay the same.
"""

import glob
import hashlib
import itertools
import logging
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.documents import Refused
from data.order import Layout, permutation

log = logging.getLogger(__name__)


class FileSource:
    """The files under one root, in the order of their relative names."""

    def __init__(self, root: Path, paths: list[Path], key: str) -> None:
        """`key` names the setting that chose the files, for error sentences."""
        self._paths = sorted(paths, key=lambda path: path.relative_to(root).as_posix())
        self._root = root
        self._key = key
        self._warned = False

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        """One stream's documents of one epoch: every num_streams-th file of the seeded order."""
        order = permutation(len(self._paths), seed, epoch)[stream::num_streams]
        for index in order[skip:]:
            yield _read(self._paths[index])

    def in_order(self) -> Iterator[tuple[int, str]]:
        """(0, text) of every file in the order of names: files are one shard, shuffled singly."""
        return ((0, _read(path)) for path in self._paths)

    def documents_if_known(self) -> int:
        """As many as files."""
        return len(self._paths)

    def layout(self, counts: Sequence[int]) -> Layout:
        """How documents() orders them; `counts` is their number, once."""
        return Layout(by_document=True, coarse=np.array(counts, np.int64))

    def validation_documents(self) -> Iterator[str]:
        """Every document, in the order of names: what the held-out ones are picked from."""
        refused: list[str] = []
        try:
            for path in self._paths:
                text = _read(path)
                if not text:
                    refused.append(path.relative_to(self._root).as_posix())
                yield text
        finally:
            if refused and not self._warned:
                self._warned = True
                names = ", ".join(refused[:3] + ["..."] * (len(refused) > 3))
                log.warning("left out %d empty or non-UTF-8 files: %s", len(refused), names)

    def fingerprint(self) -> str:
        """sha256 over the relative names and sizes of all files, in hexadecimal."""
        listing = "\n".join(
            f"{path.relative_to(self._root).as_posix()} {path.stat().st_size}"
            for path in self._paths
        )
        return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()

    def describe(self) -> str:
        """One line for the log."""
        return f"{len(self._paths)} files under {self._root}"

    def check_streams(self, num_streams: int) -> None:
        """Raise a ValueError when some stream would get no file in an epoch."""
        if len(self._paths) < num_streams:
            raise ValueError(
                f"{self._key} gives {len(self._paths)} files, but each of data.streams="
                f"{num_streams} streams needs at least one: set data.streams="
                f"{len(self._paths)} or less, or give more files"
            )


def _read(path: Path) -> str:
    """The exact text of a file, or a Refused where it is none."""
    # Bytes are decoded here because a text-mode file would turn \r\n into \n.
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return Refused("not_utf8")


def python_source() -> FileSource:
    """The running interpreter's own standard library: real text that is on every machine.

    About 1,800 files and 31 MB of Python; installed packages are left out. ValueError where the
    interpreter keeps its library in another form than files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    installed = {"site-packages", "dist-packages"}
    paths = [
        path
        for path in root.rglob("*.py")
        if path.is_file() and not installed.intersection(path.relative_to(root).parts)
    ]
    if not paths:
        raise ValueError(f"data=python found no *.py file in {root}: take data=files instead")
    return FileSource(root, paths, "data=python")


def glob_source(pattern: str) -> FileSource:
    """The files a glob matches: `**` is recursive, a leading `~` is the home folder."""
    has_files(pattern)
    expanded = Path(pattern).expanduser()
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), expanded.parts))
    root = Path(*fixed)
    paths = [Path(name) for name in glob.glob(str(expanded), recursive=True)]
    paths = [path for path in paths if path.is_file()]
    return FileSource(root.parent if root.is_file() else root, paths, f"data.files={pattern}")


def has_files(pattern: str) -> None:
    """Raises ValueError where a glob matches no file that may be read; looks no further than the
    first."""
    names = glob.iglob(str(Path(pattern).expanduser()), recursive=True)
    first = next((name for name in names if os.path.isfile(name)), None)
    if first is None:
        example = "~/text/**/*.md"
        if Path(pattern).expanduser().is_dir():
            example = f"{pattern.rstrip('/')}/**/*.md"
        raise ValueError(f"data.files={pattern} matches no file: give a glob like '{example}'")
    if not os.access(first, os.R_OK):
        raise ValueError(f"data.files={pattern}: {first} may not be read by this user")
