"""Documents as tokens: the two shapes of a source, the rules for what a document is, and text made
into tokens on the fly.

A `Source` gives text, a `TokenSource` gives `<bos> tokens <eos>`; only of the second are rows made.
Prepared shards are the other TokenSource, in data/prepared.py. Rows and ranks are not known here.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from data.order import Layout, content_digest, held_out_below
from data.quarantine import Failure
from data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

REASONS = ("empty", "not_utf8", "too_long")
"""Why a document is refused."""
# A text without a newline for so many characters is encoded in parts: memory and time of
# sentencepiece grow with the length of a line (4 million characters at once: 220 MB, and twice the
# time of parts of 100,000; shorter parts gain no more).
LONGEST_LINE = 100_000
_LONG_LINE = re.compile(rf"[^\n]{{{LONGEST_LINE}}}")


class Refused(str):
    """A document that is left out by rule: an empty string that knows why."""

    reason: str

    def __new__(cls, reason: str) -> "Refused":
        assert reason in REASONS
        made = super().__new__(cls, "")
        made.reason = reason
        return made

    def __reduce__(self) -> tuple[type["Refused"], tuple[str]]:
        return Refused, (self.reason,)


class Document(NamedTuple):
    """One document of a stream's epoch."""

    ids: np.ndarray
    """Integers [n]: <bos> tokens <eos>; n = 0 where it is passed over: held out, refused, lost."""
    failure: Failure | None = None
    """On the first document that a decision to go on without a shard passes over."""


class HeldOut(NamedTuple):
    """What one source's validation set is made of."""

    ids: list[np.ndarray]
    """Each document as <bos> tokens <eos>, int32 [n]."""
    bytes: int
    """UTF-8 bytes of their texts: the denominator of bits per byte."""
    texts: list[str]


class Source(Protocol):
    """What every source of text can do. An empty string, or a Refused, stands for a document that
    is left out: it keeps its ordinal."""

    def documents(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[str]:
        """This stream's documents of that epoch in the seeded order, from the skip-th on."""

    def in_order(self) -> Iterator[tuple[int, str]]:
        """(shard, text) of every document of the training split in the source's own order, shards
        being numbered 0, 1, ... in the smallest unit they are ever shuffled by."""

    def documents_if_known(self) -> int | None:
        """How many in_order() gives, where that is known without reading them."""

    def layout(self, counts: Sequence[int]) -> Layout:
        """How documents() orders what in_order() gives, from the documents counted in each of its
        shards; shards at the end without a document may be left out."""

    def validation_documents(self) -> Iterator[str]:
        """The documents held-out text is taken from, unshuffled and the same in every run."""

    def fingerprint(self) -> str:
        """Hexadecimal digest of what decides the documents and their order."""

    def describe(self) -> str:
        """One line for the log: what and how much."""

    def check_streams(self, num_streams: int) -> None:
        """Raise a ValueError when some stream would get no document in an epoch."""


class TokenSource(Protocol):
    """What rows are made of: documents as tokens, in the order of (seed, epoch, stream)."""

    needs_workers: bool
    """Whether reading is worth processes of its own, as tokenizing is and reading shards is not."""

    def encoded(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[Document]:
        """This stream's documents of that epoch from the skip-th on, those passed over included."""

    def held_out(self, limit: int) -> HeldOut:
        """Whole documents that encoded() passes over, in the source's own order, at most `limit`
        UTF-8 bytes of text. ValueError when there is none."""

    def fingerprint(self) -> str:
        """Hexadecimal digest of what decides the documents and their order."""

    def check_streams(self, num_streams: int) -> None:
        """Raise a ValueError when some stream would get no document in an epoch."""


class TokenizedText:
    """A source of text, tokenized while it is read."""

    needs_workers = True

    def __init__(
        self, source: Source, tokenizer: Tokenizer, *, fraction: float, longest: int
    ) -> None:
        """`fraction` is the share of documents held out of training; with 0, all validation
        documents are of another split and held_out() takes any. `longest` is in UTF-8 bytes."""
        self._source, self._tokenizer = source, tokenizer
        self._fraction, self._longest = fraction, longest

    def encoded(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[Document]:
        """See TokenSource. What was refused is counted and said when the epoch is over."""
        refused: Counter[str] = Counter()
        below = held_out_below(self._fraction)
        for text in self._source.documents(stream, num_streams, epoch, seed, skip):
            raw, reason = checked(text, self._longest)
            if reason:
                refused[reason] += 1
            if reason or content_digest(raw) < below:
                yield PASSED_OVER
            else:
                yield Document(encode_document(self._tokenizer, text))
        if refused:
            words = in_words(refused)
            log.info("stream %d, epoch %d: passed over documents: %s", stream, epoch, words)

    def held_out(self, limit: int) -> HeldOut:
        """See TokenSource."""
        below = held_out_below(self._fraction or 1.0)
        texts: list[str] = []
        seen = size = 0
        for text in self._source.validation_documents():
            seen += 1
            raw, reason = checked(text, self._longest)
            if reason or content_digest(raw) >= below:
                continue
            if size + len(raw) <= limit:
                texts.append(text)
                size += len(raw)
            elif texts:  # a first one that is too long is passed over for a shorter one
                break
        if not texts:
            raise no_held_out(seen, self._fraction, limit)
        return HeldOut([encode_document(self._tokenizer, text) for text in texts], size, texts)

    def fingerprint(self) -> str:
        """See TokenSource."""
        return self._source.fingerprint()

    def check_streams(self, num_streams: int) -> None:
        """See TokenSource."""
        self._source.check_streams(num_streams)


PASSED_OVER = Document(np.empty(0, np.int32))


def checked(text: str, longest: int) -> tuple[bytes, str | None]:
    """(a document's UTF-8 bytes, None), or (b"", why it is refused, one of REASONS)."""
    if not text:
        return b"", getattr(text, "reason", "empty")
    if len(text) > longest:
        return b"", "too_long"
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair is no character
        return b"", "not_utf8"
    return (raw, None) if len(raw) <= longest else (b"", "too_long")


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """int32 [n]: <bos>, the tokens of a text, <eos>."""
    # Part by part: a Python number takes nine times as much as one of these.
    parts = [np.array(tokenizer.encode(part), np.int32) for part in _parts(text)]
    return np.concatenate([np.int32([tokenizer.bos_id]), *parts, np.int32([tokenizer.eos_id])])


def _parts(text: str) -> list[str]:
    """The text whole, or in parts of LONGEST_LINE characters where it has a line that long."""
    if len(text) < LONGEST_LINE or not _LONG_LINE.search(text):
        return [text]
    return [text[start : start + LONGEST_LINE] for start in range(0, len(text), LONGEST_LINE)]


def in_words(refused: Counter[str]) -> str:
    """Counts by reason, as `3 empty, 1 too long`; `none` where nothing was refused."""
    words = [f"{refused[reason]:,} {reason}" for reason in REASONS if refused[reason]]
    return ", ".join(words).replace("not_utf8", "not UTF-8").replace("_", " ") or "none"


def no_held_out(seen: int, fraction: float, limit: int) -> ValueError:
    """The sentence for a validation set that would be empty."""
    return ValueError(
        f"no held-out document among {seen}: raise data.validation_fraction={fraction} or "
        f"data.validation_bytes={limit}, or give more documents"
    )
