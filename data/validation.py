"""Validation sets: held-out documents under a name, shared out over the ranks as batches.

Each target of a set is there exactly once over all ranks. Which documents are held out is the
source's to say; what they score is not computed here.
"""

import numpy as np

from data.batch import Batch, as_batch
from data.documents import HeldOut
from data.packing import Row, document_begins, empty_row, make_row, pack_rows


class ValidationSet:
    """One set, as one rank sees it."""

    def __init__(
        self,
        name: str,
        held_out: HeldOut,
        *,
        length: int,
        eos_id: int,
        batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        """`length` in tokens; `batch_size` in rows, as this rank computes them at once."""
        self.name = name
        """In metrics: val/<name>/loss."""
        self.texts: list[str] = held_out.texts
        """Its documents; no training row has one of them."""
        self.bytes: int = held_out.bytes
        """UTF-8 bytes of its documents: the denominator of bits per byte."""
        self.tokens: int = sum(len(ids) for ids in held_out.ids)
        """Of its documents, <bos> and <eos> included."""
        self._documents, self._length, self._eos_id = held_out.ids, length, eos_id
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._batches: list[Batch] | None = None

    def batches(self) -> list[Batch]:
        """This rank's share of the set's rows, as many batches on every rank.

        What is missing to whole batches is filled with rows whose labels are all -100.
        """
        if self._batches is None:
            size = self._batch_size
            rows = pack_rows(self._documents, self._length, self._eos_id)
            share = -(-len(rows) // (self._world_size * size)) * size
            mine = rows[self._rank :: self._world_size]
            mine += [empty_row(self._length, self._eos_id)] * (share - len(mine))
            self._batches = [as_batch(mine[at : at + size]) for at in range(0, share, size)]
        return self._batches

    def long_rows(self, length: int, count: int) -> tuple[list[Batch], bool]:
        """At most `count` batches of one row of `length` targets, the same on every rank, and
        whether documents were joined for them.

        Each row is the beginning of another document. Where no document is so long, all are laid
        end to end as one text, which `length` + 1 tokens of documents are needed for: then a row
        carries on over its documents, and a <bos> within it is no target.
        """
        whole = [ids for ids in self._documents if len(ids) > length]
        if whole:
            rows = [
                make_row(ids[: length + 1], document_begins(length + 1)) for ids in whole[:count]
            ]
            return [as_batch([row]) for row in rows], False
        rows = [
            Row(row.tokens, np.zeros_like(row.segment_start), row.labels)
            for row in pack_rows(self._documents, length, self._eos_id)
        ]
        full = (self.tokens - 1) // length
        return [as_batch([row]) for row in rows[: min(full, count)]], True
