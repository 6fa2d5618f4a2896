"""Preparing a run's data without training: the source opened and the tokenizer at hand.

It trains the tokenizer where there is none yet and says what is there. It writes nothing but the
cache; reading a command line is for its callers.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from data.order import is_held_out
from data.sources import DataConfig, Source, held_out_documents, open_source
from data.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer

log = logging.getLogger(__name__)


def prepare(data: DataConfig, tokenizer: TokenizerConfig) -> tuple[Source, Tokenizer]:
    """Open source and tokenizer, and log what is there: a summary of the source, and the held-out
    documents with their size and the bytes one token stands for."""
    source = open_source(data)
    opened = open_tokenizer(
        tokenizer,
        lambda: _training_texts(data, source),
        Path(data.cache).expanduser(),
        _tokenizer_key(data, tokenizer, source),
    )
    held_out = held_out_documents(data, source)
    size = sum(len(text.encode()) for text in held_out)
    tokens = sum(len(opened.encode(text)) for text in held_out)
    log.info("data: %s", source.describe())
    log.info(
        "held out: %d documents, %d bytes, %.2f bytes per token with %d pieces",
        len(held_out),
        size,
        size / max(tokens, 1),
        opened.vocab_size,
    )
    return source, opened


def _training_texts(data: DataConfig, source: Source) -> Iterator[str]:
    """Training documents in one fixed order, whatever the run's seed: the tokenizer is shared."""
    for text in source.documents(0, 1, 0, 0):
        if not is_held_out(text, data.held_out_of_training):
            yield text


def _tokenizer_key(data: DataConfig, tokenizer: TokenizerConfig, source: Source) -> str:
    """What a trained tokenizer depends on, besides its size."""
    parts = [source.fingerprint(), data.held_out_of_training, tokenizer.train_bytes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
