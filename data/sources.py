"""Where text comes from: the data config, the one shape every source has, and what is held out.

A source gives documents as strings in an order that is a pure function of (seed, epoch, stream).
It knows nothing of tokens. Reading files and reading datasets are in their own files.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from data.files import FileSource, glob_source, python_source
from data.hugging_face import LOCAL_BUILDERS, DatasetSource
from data.order import is_held_out


class SourceKind(Enum):
    """What kind of place the text is in."""

    python = "python"
    files = "files"
    dataset = "dataset"


@dataclass
class DataConfig:
    """Which text, in which order, and how much of it is held out."""

    kind: SourceKind = SourceKind.python
    """python: the interpreter's own standard library; files: a glob; dataset: Hugging Face."""
    files: str | None = None
    """Glob of text files, one document a file, for kind=files; `**` recurses, `~` is home."""
    dataset: str | None = None
    """For kind=dataset: a hub name, a folder, or json, parquet, arrow, text with data_files."""
    subset: str | None = None
    """Subset (configuration) of the dataset, where it has several."""
    data_files: list[str] = field(default_factory=list)
    """Globs of the files of a local dataset, or files within a hub repository."""
    split: str = "train"
    """Split of the dataset to train on."""
    text_column: str = "text"
    """Column of the dataset that holds the text."""
    streams: int = 16
    """Canonical streams the text is split into; a multiple of every number of ranks to be used."""
    shuffle_window: int = 256
    """Documents of a dataset shuffled among themselves; files are shuffled as a whole."""
    validation_fraction: float = 0.02
    """Share of documents held out for validation, where validation_split is null."""
    validation_split: str | None = None
    """Split of the dataset to validate on; null holds documents out of the training split."""
    validation_bytes: int = 1_000_000
    """At most so much held-out text, in UTF-8 bytes, is evaluated on."""
    num_workers: int = 1
    """Tokenizing processes per rank; 0 tokenizes in the training process."""
    cache: str = ".cache"
    """Folder for what can be made again, such as trained tokenizers."""

    def __post_init__(self) -> None:
        for name, least in (
            ("streams", 1),
            ("shuffle_window", 1),
            ("validation_bytes", 1),
            ("num_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)} must be {least} or more")
        if self.kind is SourceKind.files and not self.files:
            raise ValueError("data=files needs data.files, a glob like '~/text/**/*.md'")
        if self.kind is SourceKind.dataset and not self.dataset:
            raise ValueError(
                "data.kind=dataset needs data.dataset, a hub name or json, parquet, ..."
            )
        if self.dataset in LOCAL_BUILDERS and not self.data_files:
            raise ValueError(f"data.dataset={self.dataset} needs data.data_files, a list of globs")
        if self.validation_split is not None and self.kind is not SourceKind.dataset:
            raise ValueError(
                f"data.validation_split={self.validation_split} needs data.kind=dataset, but "
                f"data.kind={self.kind.name} has no splits: set data.validation_split=null"
            )
        if self.validation_split is None and not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1, "
                "or data.validation_split must name a split"
            )
        if self.validation_split is not None and self.validation_split == self.split:
            raise ValueError(
                f"data.validation_split={self.validation_split} is data.split as well: training "
                "and validation need two splits, or data.validation_split=null"
            )

    @property
    def held_out_of_training(self) -> float:
        """Share of the training split's documents that training passes over."""
        return 0.0 if self.validation_split else self.validation_fraction


class Source(Protocol):
    """What every source of text can do. An empty string stands for a document that was refused."""

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        """This stream's documents of that epoch in the seeded order, from the skip-th on."""

    def validation_documents(self) -> Iterator[str]:
        """The documents held-out text is taken from, unshuffled and the same in every run."""

    def fingerprint(self) -> str:
        """Hexadecimal digest of what decides the documents and their order."""

    def describe(self) -> str:
        """One line for the log: what and how much."""

    def check_streams(self, num_streams: int) -> None:
        """Raise a ValueError when some stream would get no document in an epoch."""


def open_source(config: DataConfig) -> Source:
    """Open the text that `config` names, and check that every stream gets some of it.

    ValueError when nothing matches, a split or column is missing, or there is too little text;
    RuntimeError when the network does not answer.
    """
    source: FileSource | DatasetSource
    if config.kind is SourceKind.python:
        source = python_source()
    elif config.kind is SourceKind.files:
        source = glob_source(config.files or "")
    else:
        source = DatasetSource(
            config.dataset or "",
            config.subset,
            list(config.data_files),
            config.split,
            config.text_column,
            config.shuffle_window,
            config.validation_split,
        )
    source.check_streams(config.streams)
    return source


def held_out_documents(config: DataConfig, source: Source) -> list[str]:
    """The documents to validate on, in the source's own order, whole, within validation_bytes.

    They are no document that training sees: the split of that name where validation_split is set,
    else those that is_held_out() picks. ValueError when there is none.
    """
    fraction = 1.0 if config.validation_split else config.validation_fraction
    taken: list[str] = []
    seen = size = 0
    for text in source.validation_documents():
        seen += 1
        if not text or not is_held_out(text, fraction):
            continue
        size += len(text.encode())
        if size > config.validation_bytes and taken:
            break
        if size > config.validation_bytes:
            size = 0  # even the first one is too long: look for a shorter one
            continue
        taken.append(text)
    if not taken:
        raise ValueError(
            f"no held-out document among {seen}: raise data.validation_fraction="
            f"{config.validation_fraction} or data.validation_bytes={config.validation_bytes}, "
            "or give more documents"
        )
    return taken
