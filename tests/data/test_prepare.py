"""The default, for real: the standard library, a tokenizer trained on it, and what it is worth."""

import logging
from pathlib import Path

import pytest

from data.prepare import prepare
from data.sources import DataConfig, held_out_documents
from data.tokenizer import TokenizerConfig


def test_the_default_is_prepared_once_and_compresses_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(cache=str(tmp_path))
    with caplog.at_level(logging.INFO):
        source, tokenizer = prepare(config, TokenizerConfig())
    texts = held_out_documents(config, source)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    assert sum(len(text.encode()) for text in texts) / tokens > 3.2
    assert "bytes per token with 4096 pieces" in caplog.text
    models = list(tmp_path.rglob("*.model"))
    assert len(models) == 1
    before = models[0].stat()
    _, again = prepare(config, TokenizerConfig())
    assert again.fingerprint == tokenizer.fingerprint
    assert models[0].stat().st_mtime_ns == before.st_mtime_ns
