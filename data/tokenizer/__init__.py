"""Which tokenizer a run has: a sentencepiece model, given or trained on its text, or any Hugging
Face fast tokenizer. What the two do is in the files beside this one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.tokenizer.hugging_face import HuggingFaceTokenizer
from data.tokenizer.sentence_piece import SentencePieceTokenizer, train_tokenizer


@dataclass
class TokenizerConfig:
    """Where the pieces come from."""

    path: str | None = None
    """A sentencepiece .model file, or a Hugging Face fast tokenizer: its folder or tokenizer.json;
    null takes the one that prepared shards bring, else trains one on the data and keeps it in
    data.cache."""
    vocab_size: int = 4096
    """Number of pieces, bytes and special ones included."""
    train_bytes: int = 8_000_000
    """How much training text, in UTF-8 bytes, is read to train it; unused with a path."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no room beside the 256 bytes and "
                "3 special pieces: set tokenizer.vocab_size to 300 or more"
            )
        if self.train_bytes < 1:
            raise ValueError(f"tokenizer.train_bytes={self.train_bytes} must be 1 or more")


class Tokenizer(Protocol):
    """Text to ids and back. It holds no connection and no thread: it survives a fork."""

    vocab_size: int
    """Ids are below it."""
    bos_id: int
    eos_id: int
    """May be bos_id, where a tokenizer has no <bos> of its own."""
    fingerprint: str
    """Hexadecimal digest of what decides the ids; exported files opened again keep it only if it is
    given to load_tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without <bos> and <eos>, which no text can name."""

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; <bos> and <eos> have none."""

    def export(self, folder: Path) -> None:
        """Write a folder that `AutoTokenizer.from_pretrained` and load_tokenizer open."""


def load_tokenizer(path: Path, fingerprint: str | None = None) -> Tokenizer:
    """The tokenizer of a .model file, of a tokenizer.json, or of a folder with one of them.

    `fingerprint` is the one that an exported tokenizer had where it was exported. ValueError for
    what cannot be used.
    """
    if path.is_dir() and (path / "tokenizer.model").is_file() and fingerprint is not None:
        path = path / "tokenizer.model"  # of the two files in our own export, the exact one
    if path.is_dir() or path.suffix == ".json":
        return HuggingFaceTokenizer(path, fingerprint)
    if not path.is_file():
        raise ValueError(
            f"tokenizer.path={path} is no file: give a sentencepiece .model file or a fast "
            "tokenizer's folder, or null to train one on the data"
        )
    return SentencePieceTokenizer(path, fingerprint)


def open_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], cache: Path, key: str
) -> Tokenizer:
    """The tokenizer of this run: the given one, the cached one, or a new one trained on `texts()`.

    `key` names the source of the texts; the model is kept as cache/tokenizers/{key}-{vocab_size}.
    ValueError when the given file is missing or has another size than tokenizer.vocab_size.
    """
    if config.path is None:
        path = cache / "tokenizers" / f"{key}-{config.vocab_size}.model"
        if not path.exists():
            train_tokenizer(_budget(texts(), config.train_bytes), path, config.vocab_size)
    else:
        path = Path(config.path).expanduser()
    return check_size(load_tokenizer(path), config, path)


def check_size(tokenizer: Tokenizer, config: TokenizerConfig, path: Path) -> Tokenizer:
    """The same tokenizer; ValueError where it has another size than tokenizer.vocab_size says."""
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{path} has {tokenizer.vocab_size} pieces but tokenizer.vocab_size="
            f"{config.vocab_size}: set tokenizer.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def _budget(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts until `limit` UTF-8 bytes have been given."""
    used = 0
    for text in texts:
        yield text
        used += len(text.encode())
        if used >= limit:
            return
