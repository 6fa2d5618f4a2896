"""The index of prepared shards: which there are, what they were made from, and in which order their
documents stood. It is index.json beside the shards, written last: without it nothing is prepared.

It is only read and written here; shards are data/shards.py's, addresses data/stores.py's.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.cache import ShardEntry
from data.order import Layout
from data.shards import shard_name
from data.stores import StoreError

NAME = "index.json"
FORMAT, VERSION = "retnet-shards", 1


@dataclass(frozen=True)
class Index:
    """What index.json says."""

    dtype: str
    """u2 or u4: the type of a token in the shards."""
    bytes: int
    """UTF-8 bytes of all texts, refused ones left out."""
    refused: dict[str, int]
    """{reason: documents}, of documents.REASONS."""
    rules: dict[str, int]
    """The rules of documents.py that decided: longest_document and longest_line."""
    source: dict[str, str]
    """Of the text: its fingerprint, and its words for the log."""
    tokenizer: dict[str, Any]
    """Its fingerprint, vocab_size, and files {name below tokenizer/: {size, sha256}}."""
    layout: Layout
    """The order of the text the shards were made from."""
    shards: list[ShardEntry]

    @property
    def documents(self) -> int:
        """All of them, refused ones included."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """All of them, <bos> and <eos> included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer whose tokens these are."""
        return self.tokenizer["fingerprint"]

    @property
    def tokenizer_files(self) -> dict[str, dict[str, Any]]:
        """{name below tokenizer/: {size, sha256}}: its export, as it lies beside the shards."""
        return self.tokenizer["files"]

    def describe(self) -> str:
        """How much there is, for the log."""
        kind = {"u2": "uint16", "u4": "uint32"}[self.dtype]
        return f"{len(self.shards):,} shards, {self.documents:,} documents, {self.tokens:,} {kind}"

    def dump(self) -> str:
        """The text of index.json."""
        layout = {
            "unit": "document" if self.layout.by_document else "shard",
            "coarse": self.layout.coarse.tolist(),
            "fine": None if self.layout.fine is None else self.layout.fine.tolist(),
        }
        content = {
            "format": FORMAT,
            "version": VERSION,
            "documents": self.documents,
            "tokens": self.tokens,
            **{
                name: getattr(self, name)
                for name in ("dtype", "bytes", "refused", "rules", "source", "tokenizer")
            },
            "layout": layout,
            "shards": [shard._asdict() for shard in self.shards],
        }
        return json.dumps(content, indent=1) + "\n"

    @staticmethod
    def parse(text: bytes, address: str) -> "Index":
        """What dump() wrote. ValueError where it is something else; `address` is for the words."""
        try:
            content = json.loads(text)
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"it is {content['format']} version {content['version']}")
            fine = content["layout"]["fine"]
            made = Index(
                layout=Layout(
                    content["layout"]["unit"] == "document",
                    np.array(content["layout"]["coarse"], np.int64),
                    None if fine is None else np.array(fine, np.int64),
                ),
                shards=[ShardEntry(**shard) for shard in content["shards"]],
                **{
                    name: content[name]
                    for name in ("dtype", "bytes", "refused", "rules", "source", "tokenizer")
                },
            )
            made._check(content["documents"])
            return made
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"data.path={address}: {NAME} is no index of {FORMAT} version {VERSION} ({error}): "
                "prepare the data again, with this version of python -m data.prepare"
            ) from error

    def _check(self, documents: int) -> None:
        """ValueError where the parts contradict each other, or where a stranger's index has names
        that would lead out of the folders they are for."""
        counts = [self.layout.documents, self.documents, documents]
        if len(set(counts)) > 1:
            raise ValueError(f"its parts have {counts} documents")
        if self.dtype not in ("u2", "u4"):
            raise ValueError(f"its tokens are {self.dtype}")
        names = [shard.name for shard in self.shards]
        if names != [shard_name(number) for number in range(len(names))]:
            raise ValueError("its shards have other names")
        digests = [shard.xxh3_128 for shard in self.shards]
        if not all(re.fullmatch("[0-9a-f]{32}", digest) for digest in digests):
            raise ValueError("a checksum is none")
        numbers = [n for shard in self.shards for n in (shard.size, shard.documents, shard.tokens)]
        fine = self.layout.coarse if self.layout.fine is None else self.layout.fine
        numbers += self.layout.coarse.tolist() + fine.tolist() + [self.rules["longest_document"]]
        if int(fine.sum()) != documents:
            raise ValueError("its row groups have another number of documents")
        if not isinstance(self.source["fingerprint"], str):
            raise ValueError("the text's fingerprint is none")
        if not all(isinstance(entry["sha256"], str) for entry in self.tokenizer_files.values()):
            raise ValueError("a checksum of its tokenizer is none")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a number of documents, tokens or bytes is none")
        files = [*self.tokenizer_files, self.tokenizer_fingerprint]
        if not all(re.fullmatch(r"\w[\w.-]*", name) for name in files):
            raise ValueError("a file of its tokenizer has a name that is no file's")

    @staticmethod
    def load(read: Callable[[str], bytes], address: str) -> "Index":
        """The index among the small files that `read` gives by name; `address` is for the words.

        ValueError when there is none; RuntimeError when the store does not answer.
        """
        try:
            text = read(NAME)
        except (FileNotFoundError, StoreError) as error:
            if isinstance(error, StoreError) and error.status != 404:
                raise
            raise ValueError(
                f"data.path={address} has no {NAME}: either python -m data.prepare was not "
                "finished there, and the same command goes on with it, or the address is another"
            ) from error
        return Index.parse(text, address)
