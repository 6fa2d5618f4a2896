"""Any Hugging Face fast tokenizer as this house's: `tokenizer.json` and what its folder says of it.

Only the `tokenizers` library reads it, which a tokenizer.json names completely. A special token's
string in a text is text here, whatever the file says. What such a tokenizer loses of a text is its
own affair: it is counted where it is opened, and not refused.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import tokenizers


class HuggingFaceTokenizer:
    """Text to ids and back by the `tokenizers` library, without the tokens it would add itself."""

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        """`path`: a tokenizer.json, or the folder that holds it and tokenizer_config.json.
        `fingerprint`: that of the files these were exported from, where they were.

        ValueError where there is no such file, it names no end of text, or a special token's string
        cannot be kept text.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"tokenizer.path={path} has no tokenizer.json: give a fast tokenizer's folder or a "
                "sentencepiece .model file"
            )
        blob = file.read_bytes()
        try:
            self._fast = tokenizers.Tokenizer.from_buffer(blob)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizer.path={path} is no fast tokenizer: {error}") from error
        self._settings = _settings(file.parent)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        ids = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values()) + 1
        names = {name: _content(self._settings.get(name)) for name in ("bos_token", "eos_token")}
        eos = names["eos_token"]
        if eos not in ids:
            raise ValueError(
                f"tokenizer.path={path} has no <eos>: tokenizer_config.json beside tokenizer.json "
                f"must name one of its tokens as eos_token, and has {eos!r}"
            )
        self._eos, self._bos = eos, names["bos_token"] if names["bos_token"] in ids else eos
        self.bos_id: int = ids[self._bos]
        self.eos_id: int = ids[self._eos]
        self.begins_with_eos: bool = names["bos_token"] not in ids
        """Whether it has no <bos> of its own, so that <eos> begins a document too."""
        self.fingerprint: str = fingerprint or _fingerprint(blob, self._bos, self._eos)
        """sha256 of tokenizer.json and of which tokens begin and end a text, in hexadecimal."""
        for name in (self._bos, self._eos):
            if {self.bos_id, self.eos_id} & set(self.encode(f"a {name} b")):
                raise ValueError(
                    f"tokenizer.path={path} makes {name!r} in a text the special token itself: "
                    'set "special": true on it in tokenizer.json, under added_tokens'
                )

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without <bos> and <eos>."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; special tokens have none."""
        return self._fast.decode(ids, skip_special_tokens=True)

    def export(self, folder: Path) -> None:
        """Write tokenizer files that `AutoTokenizer.from_pretrained(folder)` loads: encode()'s ids
        with <bos> in front, and the same decode."""
        folder.mkdir(parents=True, exist_ok=True)
        given = {key: _content(self._settings.get(f"{key}_token")) for key in ("unk", "pad")}
        special = {"bos_token": self._bos, "eos_token": self._eos}
        special |= {f"{key}_token": token for key, token in given.items() if token is not None}
        template = tokenizers.processors.TemplateProcessing(
            single=f"{self._bos} $A",
            pair=f"{self._bos} $A {self._bos} $B",
            special_tokens=[(self._bos, self.bos_id)],
        )
        exported = tokenizers.Tokenizer.from_str(self._fast.to_str())
        exported.post_processor = template
        exported.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # Special tokens written in a document are text, not commands.
            "split_special_tokens": True,
            # A batch needs a token to pad with. On the left: what is generated follows the last
            # column.
            "pad_token": special.get("pad_token", special.get("unk_token", self._eos)),
            "padding_side": "left",
            **special,
        }
        if "chat_template" in self._settings:
            config["chat_template"] = self._settings["chat_template"]
        for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer.json say; tokenizer_config.json has the last word."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            settings |= {key: value for key, value in found.items() if value is not None}
    return settings


def _content(token: object) -> str | None:
    """The string of a token, which is written as one or as a dict with its properties."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _fingerprint(blob: bytes, bos: str, eos: str) -> str:
    return hashlib.sha256(blob + json.dumps([bos, eos]).encode()).hexdigest()
