"""A small tokenizer, trained once, for every test of this room."""

import sysconfig
from pathlib import Path

import pytest

from data.tokenizer import SentencePieceTokenizer, Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def library() -> list[str]:
    """About a tenth of the standard library, in the order of names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    texts = (path.read_bytes().decode(errors="ignore") for path in paths[::12])
    return [text for text in texts if text]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, library: list[str]) -> Tokenizer:
    """1,000 pieces, trained on half a megabyte of Python."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_tokenizer((text[:10_000] for text in library[:80]), path, 1000)
    return SentencePieceTokenizer(path)
