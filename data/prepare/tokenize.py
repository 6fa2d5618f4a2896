"""Tokenizing in several processes: texts go in, what shards are made of comes out in their order.

The processes are forked with the tokenizer in them and end with their parent, however that ends. It
writes nothing and knows nothing of files.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from data.documents import checked, encode_document
from data.order import content_digest
from data.shards import Encoded, join, reason_number, token_type
from data.tokenizer import Tokenizer

# A piece of work: so many characters, or documents, or one document that is longer.
CHARACTERS = 1 << 20
DOCUMENTS = 1 << 14
# Pieces of work for each process that may be on the way: enough that none waits for the reader.
ON_THE_WAY = 4


def encode_in_order(
    texts: Iterable[str], tokenizer: Tokenizer, workers: int, longest: int
) -> Iterator[Encoded]:
    """The texts as tokens, a piece of work at a time, whichever of the `workers` made it.

    `longest` is data.longest_document. RuntimeError when a process was killed.
    """
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("fork"),
        initializer=_start,
        initargs=(tokenizer, longest),
    )
    waiting: deque[Future[Encoded]] = deque()
    try:
        for piece in _pieces(texts):
            waiting.append(pool.submit(_encode, piece))
            if len(waiting) >= ON_THE_WAY * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a tokenizing process was killed, perhaps for want of memory: run the same command "
            "again, if need be with fewer workers or a smaller data.longest_document"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(texts: Iterable[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= CHARACTERS or len(piece) == DOCUMENTS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


_settings: tuple[Tokenizer, int] | None = None  # of this process, which is a worker


def _start(tokenizer: Tokenizer, longest: int) -> None:
    global _settings
    _settings = tokenizer, longest
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    """One piece of work."""
    assert _settings is not None
    tokenizer, longest = _settings
    dtype = token_type(tokenizer.vocab_size)
    documents, facts = [], []
    for text in texts:
        raw, reason = checked(text, longest)
        documents.append(np.empty(0, dtype) if reason else encode_document(tokenizer, text))
        facts.append((content_digest(raw) if raw else 0, len(raw), reason_number(reason)))
    highest = max(itertools.chain([0], (ids.max() for ids in documents if len(ids))))
    if highest >= tokenizer.vocab_size:
        raise RuntimeError(
            f"the tokenizer gave id {highest}, and has only {tokenizer.vocab_size}: its files "
            "contradict each other"
        )
    return join(documents, facts, dtype)
