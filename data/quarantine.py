"""What a run does without: shards that could not be read, and the decisions to pass over them.

A decision belongs to one stream and counts from one document of one epoch on, so that no rank has
to ask another, and so that a resume that is given the decisions makes the very same rows again. It
is not the place where shards are fetched or checked; that is data/cache.py.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class OnBadShard(Enum):
    """What to do about a shard that cannot be read, or is not what its index says."""

    stop = "stop"
    quarantine = "quarantine"


class Failure(NamedTuple):
    """One decision to go on without a shard: JSON-able, and built again by Failure(*values)."""

    source: str
    """Name of the source in the mixture; empty where there is only one."""
    shard: str
    """Name of the shard in its index."""
    stream: int
    epoch: int
    document: int
    """Ordinal of the first document in this stream's epoch that is passed over."""
    why: str
    """What is wrong with the shard, in words."""


class BadShard(RuntimeError):
    """A shard that cannot be had, in one sentence: which one and why, and what to do about it."""

    def __init__(self, words: str, remedy: str = "") -> None:
        super().__init__(f"{words}; {remedy}" if remedy else words)
        self.words = words
        """The sentence without the remedy, for where going on without the shard is none."""


class Quarantine:
    """The decisions made so far, those of before a resume included."""

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self._first: dict[tuple[str, str, int], Failure] = {}
        for failure in failures:
            self.add(failure)

    def add(self, failure: Failure) -> None:
        """Take one decision; of two for the same shard and stream, the earlier one holds."""
        key = failure.source, failure.shard, failure.stream
        held = self._first.get(key)
        if held is None or _place(failure) < _place(held):
            self._first[key] = failure

    def skips(self, source: str, shard: str, stream: int, epoch: int, document: int) -> bool:
        """Whether that stream passes over a document, the document-th of its epoch, of a shard."""
        failure = self._first.get((source, shard, stream))
        return failure is not None and (epoch, document) >= _place(failure)

    def failures(self) -> list[Failure]:
        """All decisions in force, ordered, so that the same ones are always the same list."""
        return sorted(self._first.values())


def _place(failure: Failure) -> tuple[int, int]:
    """Where in its stream a decision begins to hold."""
    return failure.epoch, failure.document
