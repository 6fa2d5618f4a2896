"""Prepared shards as a source of rows: the same documents in the same order as the text they were
made from, with nothing left to tokenize.

It reads shards that somebody else makes local (`open_shard`) and says which it will need (`ahead`).
Where they come from, and when a failed fetch is final, is data/cache.py's.
"""

import bisect
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from data.cache import ShardFile
from data.cache_folder import CacheFull
from data.config import OnBadShard, Order
from data.documents import PASSED_OVER, Document, HeldOut, no_held_out
from data.index import Index
from data.order import Layout, held_out_below
from data.quarantine import BadShard, Failure, Quarantine
from data.shards import Shard
from data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Open shards of one process; more are closed, the longest unused first.
OPEN_SHARDS = 64
# Shards of each stream that are asked for before they are read.
FETCH_AHEAD = 2
# Documents that are read at once where they are shuffled singly; else a whole window is.
SINGLE_DOCUMENTS = 16
# Records of a table that are looked through at once for held-out documents.
RECORDS_AT_ONCE = 1 << 16


class PreparedSource:
    """A TokenSource over the shards of one index."""

    needs_workers = False

    def __init__(
        self,
        index: Index,
        open_shard: Callable[[str], ShardFile],
        ahead: Callable[[list[str]], None],
        *,
        name: str,
        fraction: float,
        window: int,
        order: Order,
        on_bad_shard: OnBadShard,
        quarantine: Quarantine,
        tokenizer: Tokenizer,
        address: str,
    ) -> None:
        """`name` is the source's in the mixture, `fraction` the share held out of training (0 holds
        nothing out, and lets held_out() take any), `window` data.shuffle_window; `quarantine` has
        the decisions so far and gets those made here."""
        self._index, self._open_shard, self._announce = index, open_shard, ahead
        self._name, self._address = name, address
        self._fraction, self._window, self._order = fraction, window, order
        self._on_bad_shard, self._quarantine = on_bad_shard, quarantine
        self._tokenizer = tokenizer
        counts = np.array([shard.documents for shard in index.shards], np.int64)
        self._ends = np.cumsum(counts)
        self._layout = index.layout
        if order is Order.shards:
            self._layout = Layout(by_document=False, coarse=counts)
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def encoded(
        self, stream: int, num_streams: int, epoch: int, seed: int, skip: int = 0
    ) -> Iterator[Document]:
        """See TokenSource. BadShard where one cannot be read and data.on_bad_shard=stop."""
        if self._layout.by_document:
            visits, window = None, SINGLE_DOCUMENTS
        else:
            shares = self._layout.shares(stream, num_streams, epoch, seed)
            visits, window = _Visits(shares, self._ends), self._window
        place = skip
        for block in self._layout.blocks(stream, num_streams, epoch, seed, window, skip):
            numbers = np.searchsorted(self._ends, block, side="right")
            needed = np.unique(numbers).tolist()
            self._ask_for(needed + (visits.after(place + len(block)) if visits else []))
            documents = [PASSED_OVER] * len(block)
            for number in needed:
                mine = np.flatnonzero(numbers == number)
                self._fill(documents, number, block[mine], mine, (stream, epoch, place))
            yield from documents
            place += len(block)

    def held_out(self, limit: int) -> HeldOut:
        """See TokenSource. BadShard where one that is needed for it cannot be read, always."""
        made = HeldOut([], 0, [])
        try:
            for number in range(len(self._index.shards)):
                made, full = self._take_held_out(number, made, limit)
                if full:
                    break
        except BadShard as error:
            raise BadShard(
                f"{error.words}; its held-out documents are validated on and are nowhere else"
            ) from error
        finally:
            self.close()  # nothing open may be carried over into another process
        if not made.ids:
            raise no_held_out(self._index.documents, self._fraction, limit)
        texts = [self._tokenizer.decode(ids[1:-1].tolist()) for ids in made.ids]
        return made._replace(texts=texts)

    def fingerprint(self) -> str:
        """That of the text, whose rows these are; of the shards, where they have an own order."""
        if self._order is Order.source:
            return self._index.source["fingerprint"]
        listing = "\n".join(f"{shard.xxh3_128} {shard.size}" for shard in self._index.shards)
        return hashlib.sha256(listing.encode()).hexdigest()

    def check_streams(self, num_streams: int) -> None:
        """See TokenSource."""
        if not self._layout.fits(num_streams):
            count = self._index.documents
            raise ValueError(
                f"data.path={self._address} has {count} documents, but each of data.streams="
                f"{num_streams} streams needs at least one: set data.streams={max(count, 1)} or "
                "less, or prepare more data"
            )

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _fill(
        self,
        documents: list[Document],
        number: int,
        ordinals: np.ndarray,
        mine: np.ndarray,
        place: tuple[int, int, int],
    ) -> None:
        """Read one shard's `ordinals` into documents[mine]. `place` is (stream, epoch, ordinal in
        the stream's epoch of documents[0])."""
        left = ~self._skipped(number, place, mine)
        if not left.any():
            return
        ordinals, mine = ordinals[left], mine[left]
        rising = np.argsort(ordinals)
        try:
            found = self._read(number, ordinals[rising])
        except BadShard as error:
            failure = self._fail(number, place, int(mine[0]), error)
            documents[mine[0]] = PASSED_OVER._replace(failure=failure)
            return
        mine = mine[rising]
        for index, ids in found:
            documents[mine[index]] = Document(ids)

    def _read(self, number: int, ordinals: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(place among `ordinals`, tokens int32 [n]) of those documents of a shard, in rising
        order, that are trained on."""
        shard = self._shard(number)
        before = int(self._ends[number]) - self._index.shards[number].documents
        try:
            begin, records = shard.records(ordinals - before)
            held_out = _lies_below(records["digest"], held_out_below(self._fraction))
            kept = np.flatnonzero((records["reason"] == 0) & ~held_out)
            ids = shard.read(begin[kept], records["end"][kept].astype(np.int64))
        except BadShard:
            self._open.pop(number).close()
            raise
        return list(zip(kept.tolist(), ids, strict=True))

    def _skipped(self, number: int, place: tuple[int, int, int], mine: np.ndarray) -> np.ndarray:
        """bool [n]: which documents of a shard, the mine-th after `place`, are passed over by a
        decision of before."""
        stream, epoch, first = place
        shard = self._index.shards[number].name

        def skips(offset: int) -> bool:
            return self._quarantine.skips(self._name, shard, stream, epoch, first + offset)

        if not skips(int(mine[-1])):  # a decision holds from its document on
            return np.zeros(len(mine), bool)
        return np.array([skips(offset) for offset in mine.tolist()])

    def _fail(
        self, number: int, place: tuple[int, int, int], offset: int, error: BadShard
    ) -> Failure:
        """Decide to go on without a shard, if the user said so."""
        if self._on_bad_shard is OnBadShard.stop:
            raise error
        stream, epoch, first = place
        shard = self._index.shards[number].name
        failure = Failure(self._name, shard, stream, epoch, first + offset, error.words)
        self._quarantine.add(failure)
        log.warning(
            "stream %d goes on without %s from document %d of epoch %d on: %s",
            *(stream, shard, failure.document, epoch, error.words),
        )
        return failure

    def _shard(self, number: int) -> Shard:
        """An open shard, others closed where there are too many or no room for one more."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        name = self._index.shards[number].name
        try:
            file = self._open_shard(name)
        except CacheFull:
            self.close()
            file = self._open_shard(name)
        self._open[number] = Shard(name, file)
        return self._open[number]

    def _ask_for(self, numbers: list[int]) -> None:
        names = [self._index.shards[number].name for number in numbers if number not in self._open]
        if names:
            self._announce(names)

    def _take_held_out(self, number: int, made: HeldOut, limit: int) -> tuple[HeldOut, bool]:
        """What one shard adds to `made`, and whether that fills `limit`."""
        shard = self._shard(number)
        below = held_out_below(self._fraction or 1.0)
        for first in range(0, shard.documents, RECORDS_AT_ONCE):
            count = min(RECORDS_AT_ONCE, shard.documents - first)
            begin, records = shard.records(np.arange(first, first + count))
            chosen = (records["reason"] == 0) & _lies_below(records["digest"], below)
            for index in np.flatnonzero(chosen):
                size = int(records["bytes"][index])
                if made.bytes + size <= limit:
                    ends = records["end"][index : index + 1].astype(np.int64)
                    made.ids.extend(shard.read(begin[index : index + 1], ends))
                    made = made._replace(bytes=made.bytes + size)
                elif made.ids:
                    return made, True
        return made, False


class _Visits:
    """Which shards a stream comes to in an epoch, and when."""

    def __init__(self, shares: list[range], ends: np.ndarray) -> None:
        """`shares` are ordinals in the order they are read, `ends` those at which shards end."""
        self._begins: list[int] = []
        self._numbers: list[int] = []
        done = 0
        for share in shares:
            first, last = np.searchsorted(ends, (share[0], share[-1]), side="right").tolist()
            for number in range(first, last + 1):
                before = 0 if number == first else int(ends[number - 1]) - share.start
                self._begins.append(done + -(-before // share.step))
                self._numbers.append(number)
            done += len(share)

    def after(self, place: int) -> list[int]:
        """The shards it comes to next once `place` documents are read."""
        first = bisect.bisect_left(self._begins, place)
        return list(dict.fromkeys(self._numbers[first : first + FETCH_AHEAD]))


def _lies_below(digests: np.ndarray, below: int) -> np.ndarray:
    """bool [n]: held out, as order.is_held_out() says."""
    if below >= 1 << 64:
        return np.ones(len(digests), bool)
    return digests < np.uint64(below)
