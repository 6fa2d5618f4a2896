"""What a user says about data: the config of one source, of a mixture of them, and of their order.

It checks what can be checked without opening anything; data/opening.py opens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from data.quarantine import OnBadShard

LOCAL_BUILDERS = ("json", "parquet", "arrow", "text", "csv")


class SourceKind(Enum):
    """What kind of place the documents are in."""

    python = "python"
    files = "files"
    dataset = "dataset"
    prepared = "prepared"
    mixture = "mixture"


class Packing(Enum):
    """How documents become rows of one length."""

    cut = "cut"
    best_fit = "best_fit"


class Order(Enum):
    """What prepared shards are shuffled as."""

    source = "source"
    shards = "shards"


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the name of one source of several in front of any ValueError's sentence."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"source {source}: {error}" if source else str(error)) from error


@dataclass
class SourceConfig:
    """Where documents come from."""

    kind: SourceKind = SourceKind.python
    """python: the interpreter's own standard library; files: a glob; dataset: Hugging Face;
    prepared: token shards that `python -m data.prepare` made; mixture: several of these."""
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
    validation_split: str | None = None
    """Split of the dataset to validate on; null holds documents out of the training split."""
    path: str | None = None
    """For kind=prepared: the folder of the shards, or s3://..., http(s)://...,
    hf://datasets/user/name/folder."""

    def __post_init__(self) -> None:
        kind = self.kind.name
        needs = {
            SourceKind.files: ("files", "a glob like '~/text/**/*.md'"),
            SourceKind.dataset: ("dataset", "a hub name or json, parquet, ..."),
            SourceKind.prepared: ("path", "the folder or address of prepared shards"),
        }
        if self.kind in needs and not getattr(self, needs[self.kind][0]):
            key, meaning = needs[self.kind]
            raise ValueError(f"data.kind={kind} needs data.{key}, {meaning}")
        if self.dataset in LOCAL_BUILDERS and not self.data_files:
            raise ValueError(f"data.dataset={self.dataset} needs data.data_files, a list of globs")
        self._check_unread()
        if self.validation_split is None:
            return
        if self.kind is not SourceKind.dataset:
            raise ValueError(
                f"data.validation_split={self.validation_split} needs data.kind=dataset, but "
                f"data.kind={kind} has no splits: set data.validation_split=null"
            )
        if self.validation_split == self.split:
            raise ValueError(
                f"data.validation_split={self.validation_split} is data.split as well: training "
                "and validation need two splits, or data.validation_split=null"
            )

    def _check_unread(self) -> None:
        """Raises ValueError for a place that is named and that the kind does not read."""
        for key, kind, options in (
            ("files", SourceKind.files, "files"),
            ("dataset", SourceKind.dataset, "hub"),
            ("data_files", SourceKind.dataset, "jsonl, parquet, arrow or text"),
            ("path", SourceKind.prepared, "prepared"),
        ):
            if getattr(self, key) and self.kind is not kind:
                raise ValueError(
                    f"data.kind={self.kind.name} does not read data.{key}, which is given: say "
                    f"data={options}, or leave it out"
                )


@dataclass
class MixtureSource(SourceConfig):
    """One of several sources."""

    name: str = ""
    """What the source is called in metrics, in data.stages and in sentences."""
    weight: float = 1.0
    """Its share of the rows, beside the other sources' weights."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or not self.name.isprintable() or " " in self.name:
            raise ValueError(
                f"each entry of data.sources and data.validation_sets needs a name without spaces "
                f"and slashes, and one has name={self.name!r}"
            )
        if self.weight < 0:
            raise ValueError(f"source {self.name}: weight={self.weight} must be 0 or more")
        with naming(self.name):
            if self.kind is SourceKind.mixture:
                raise ValueError("a source of a mixture cannot be a mixture: list its sources")
            super().__post_init__()


@dataclass
class StageConfig:
    """Other weights from a position on."""

    position: int = 0
    """Global row (samples consumed by all ranks) from which on these weights hold."""
    weights: dict[str, float] = field(default_factory=dict)
    """{name of a source: weight}; a source that is not named is not drawn from."""


@dataclass
class DataConfig(SourceConfig):
    """Which text, in which order, and how much of it is held out."""

    sources: list[MixtureSource] = field(default_factory=list)
    """Several sources instead of the one above: each entry has name, weight and the keys above, as
    in '[{name: code, weight: 2, kind: files, files: "~/a/*.py"}, {name: web, weight: 3, ...}]'."""
    stages: list[StageConfig] = field(default_factory=list)
    """Weights that hold from a position on, as '[{position: 64000, weights: {code: 1}}]'."""
    validation_sets: list[MixtureSource] = field(default_factory=list)
    """More texts to validate on, each under its name; entries like those of data.sources."""
    streams: int = 16
    """Canonical streams the text is split into; a multiple of every number of ranks to be used."""
    shuffle_window: int = 256
    """Documents of a dataset shuffled among themselves; files are shuffled as a whole."""
    order: Order = Order.source
    """Of prepared shards: source keeps the order of the text they were made from, shards shuffles
    the shards themselves, which reads each of them once an epoch."""
    packing: Packing = Packing.cut
    """cut: documents end to end, cut into rows; best_fit: no document that fits a row is split, and
    what stays free is padding."""
    longest_document: int = 64_000_000
    """UTF-8 bytes; longer documents are refused and counted."""
    validation_fraction: float = 0.02
    """Share of documents held out for validation, where validation_split is null; 0 only where
    data.validation_sets has some."""
    validation_bytes: int = 1_000_000
    """At most so much held-out text of each set, in UTF-8 bytes, is evaluated on."""
    num_workers: int = 1
    """Tokenizing processes per rank; 0 tokenizes in the training process. Shards need none."""
    cache: str = ".cache"
    """Folder for what can be made again, such as trained tokenizers and fetched shards; a disk of
    this machine."""
    cache_gigabytes: float = 20.0
    """Fetched shards kept in data.cache; the oldest go first."""
    retry_seconds: float = 300.0
    """How long a shard that a store does not give is asked for again."""
    timeout: float = 30.0
    """Seconds without a byte from a store, after which it is asked again."""
    on_bad_shard: OnBadShard = OnBadShard.stop
    """stop: a shard that cannot be read ends the run; quarantine: the run goes on without it."""
    allow_change: bool = False
    """Resume on data that differs from what the checkpoint was trained on."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_mixture()
        super().__post_init__()
        if self.validation_split is None and not 0 < self.validation_fraction < 1:
            if self.validation_fraction or not self.validation_sets:
                raise ValueError(
                    f"data.validation_fraction={self.validation_fraction} must lie between 0 and "
                    "1, or data.validation_split must name a split, or data.validation_sets sets"
                )

    def _check_numbers(self) -> None:
        for name, least in (
            ("streams", 1),
            ("shuffle_window", 1),
            ("longest_document", 1),
            ("validation_bytes", 1),
            ("num_workers", 0),
            ("retry_seconds", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)} must be {least} or more")
        for name in ("cache_gigabytes", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name}={getattr(self, name)} must be above 0")

    def _check_mixture(self) -> None:
        names = [source.name for source in [*self.sources, *self.validation_sets]]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"data.sources and data.validation_sets name {twice[0]} twice")
        if "held_out" in names:
            raise ValueError(
                "data.sources or data.validation_sets name one held_out, which is what a single "
                "source holds out of training: give it another name"
            )
        if not self.sources:
            if self.kind is SourceKind.mixture:
                raise ValueError(
                    "data=mixture needs data.sources, a list like '[{name: code, weight: 2, kind: "
                    'files, files: "~/a/*.py"}, {name: web, kind: prepared, path: shards}]\''
                )
            if self.stages:
                raise ValueError("data.stages weighs data.sources, and there are none")
            return
        several = self.kind in (SourceKind.mixture, SourceKind.python)
        if not several or self.files or self.dataset or self.path:
            raise ValueError(
                f"data.sources gives {len(self.sources)} sources and data.kind={self.kind.name} "
                "another one: make it an entry of data.sources, or leave out one of the two"
            )
        last = -1
        for stage in self.stages:
            if stage.position <= last:
                raise ValueError(
                    f"data.stages has position {stage.position} after {last}: positions are 0 or "
                    "more and increase"
                )
            last = stage.position
            unknown = sorted(set(stage.weights) - {source.name for source in self.sources})
            if unknown:
                raise ValueError(
                    f"data.stages gives weights for {unknown[0]!r}, which is no source: "
                    f"{', '.join(source.name for source in self.sources)}"
                )
        for position, weights in self.weights():
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(
                    f"the weights of data.sources from row {position} on are "
                    f"{', '.join(map(str, weights))}: none may be below 0, and one must be above"
                )

    def weights(self) -> list[tuple[int, list[float]]]:
        """[(position, weight of each source)] in the order of positions; the first is 0."""
        made = [(0, [source.weight for source in self.sources])]
        for stage in self.stages:
            weights = [float(stage.weights.get(source.name, 0.0)) for source in self.sources]
            made.append((stage.position, weights))
        return made[1:] if len(made) > 1 and made[1][0] == 0 else made

    def proportions(self) -> list[list]:
        """[[position, {name: share of the rows}]] of data.sources; only what changes is listed."""
        made: list[list] = []
        for position, weights in self.weights():
            listed = zip(self.sources, weights, strict=True)
            total = sum(weights)
            shares = {source.name: weight / total for source, weight in listed if weight}
            if not made or made[-1][1] != shares:
                made.append([position, shares])
        return made

    def held_out_fraction(self, source: SourceConfig) -> float:
        """Share of a source's training split that training passes over."""
        return 0.0 if source.validation_split else self.validation_fraction

    @property
    def held_out_of_training(self) -> float:
        """Share of the one source's training split that training passes over."""
        return self.held_out_fraction(self)
