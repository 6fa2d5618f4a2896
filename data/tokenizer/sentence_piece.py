"""Sentencepiece BPE that loses nothing, so that decode(encode(x)) == x for any text.

It trains a model on the run's own text, opens a given one, and exports either as a Hugging Face
folder that gives the same ids. It knows nothing of rows, streams or models.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto

# Sentencepiece writes a space as this character. A literal one in the text must not become a space.
ESCAPED_SPACE = "\u2581"
# Sentencepiece stores offsets within a training line in 16 bits and aborts beyond them.
LONGEST_TRAINING_LINE = 4_000
# Sentencepiece slows down with the length of a text: whole files of the standard library cost 1.6
# times the processor time of parts of at least so many characters.
SHORTEST_PART = 200


class SentencePieceTokenizer:
    """Text to ids and back, without loss.

    The given model's `add_dummy_prefix` and `remove_extra_whitespaces` are switched off, since both
    change text; a model that changes text in any other way is refused with a ValueError.
    """

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        """`fingerprint` is that of the file this one was exported from, where it was."""
        blob = path.read_bytes()
        self.fingerprint: str = fingerprint or hashlib.sha256(blob).hexdigest()
        """sha256 of the model file, in hexadecimal."""
        try:
            self._proto = ModelProto.FromString(blob)
        except Exception as error:  # protobuf's, of which each of its backends has another
            raise ValueError(
                f"tokenizer.path={path} is no sentencepiece model ({error}): give one, or a folder "
                "with tokenizer.json, or null to train one on the data"
            ) from error
        self._proto.normalizer_spec.add_dummy_prefix = False
        self._proto.normalizer_spec.remove_extra_whitespaces = False
        _refuse_lossy(self._proto, path)
        self._model = sentencepiece.SentencePieceProcessor(
            model_proto=self._proto.SerializeToString()
        )
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self._literal = [self._model.piece_to_id(f"<0x{b:02X}>") for b in ESCAPED_SPACE.encode()]
        # BPE joins neighbors into pieces only: where no piece crosses the end of a line, no merge
        # does, and lines encoded apart give the ids of the whole.
        self._lines_apart = not any(_ENDS_LINE.search(piece.piece) for piece in self._proto.pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without <bos> and <eos>."""
        ids: list[int] = []
        for i, part in enumerate(text.split(ESCAPED_SPACE)):
            ids += self._literal if i else []
            for lines in _lines(part) if self._lines_apart else (part,):
                ids += self._model.encode(lines)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; <bos> and <eos> have none."""
        return self._model.decode(ids)

    def export(self, folder: Path) -> None:
        """Write tokenizer files that `AutoTokenizer.from_pretrained(folder)` loads.

        It gives encode()'s ids with <bos> in front and the same decode. Pieces carry plain spaces
        there, so no normalizer is needed and a literal U+2581 falls back to its bytes by itself.
        """
        folder.mkdir(parents=True, exist_ok=True)
        special = {
            name: self._model.id_to_piece(index)
            for name, index in (
                ("bos_token", self.bos_id),
                ("eos_token", self.eos_id),
                ("unk_token", self._model.unk_id()),
            )
        }
        _export_model(self._proto, special, self.bos_id).save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # "<s>" written in a document is five characters, not a command.
            "split_special_tokens": True,
            # A batch needs a token to pad with, and this one comes from no text. On the left: what
            # is generated follows the last column.
            "pad_token": special["unk_token"],
            "padding_side": "left",
            **special,
        }
        for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "tokenizer.model").write_bytes(self._proto.SerializeToString())


_ENDS_LINE = re.compile(r"[^\n]\n")


def _lines(text: str) -> Iterator[str]:
    """The text in parts of at least SHORTEST_PART characters, cut before newlines that follow
    another character."""
    start = 0
    while found := _ENDS_LINE.search(text, start + SHORTEST_PART):
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:]


def _refuse_lossy(proto: ModelProto, path: Path) -> None:
    """Raise a ValueError when this model could not give every text back exactly."""
    trainer, kinds = proto.trainer_spec, {piece.type for piece in proto.pieces}
    faults = {
        "it is not a BPE model (model_type=bpe)": trainer.model_type != trainer.BPE,
        "it has no byte fallback (byte_fallback=true)": not trainer.byte_fallback,
        "it has no <bos> or <eos>": min(trainer.bos_id, trainer.eos_id) < 0,
        "it normalizes text (normalization_rule_name=identity)": bool(
            proto.normalizer_spec.precompiled_charsmap
        ),
        "it has user-defined symbols": proto.SentencePiece.USER_DEFINED in kinds,
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError(
            f"tokenizer.path={path} cannot be used, because {' and '.join(found)}: "
            "give another sentencepiece model, or null to train one on the data"
        )


def _export_model(proto: ModelProto, special: dict[str, str], bos_id: int) -> tokenizers.Tokenizer:
    """The same pieces and merges for the `tokenizers` library.

    Sentencepiece joins the neighbors whose joined piece scores best, `tokenizers` those whose merge
    comes first: so the merges are every way to cut every piece in two pieces, best score first.
    """
    plain = [piece.piece.replace(ESCAPED_SPACE, " ") for piece in proto.pieces]
    normal = {
        plain[i]: piece.score
        for i, piece in enumerate(proto.pieces)
        if piece.type == proto.SentencePiece.NORMAL
    }
    merges = [
        (text[:cut], text[cut:])
        for text in sorted(normal, key=lambda text: -normal[text])
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={text: i for i, text in enumerate(plain)},
            merges=merges,
            unk_token=special["unk_token"],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    fast.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    fast.add_special_tokens(list(special.values()))
    bos = special["bos_token"]
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )
    return fast


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with the newlines before them, so that newline and indentation start a piece."""
    for text in texts:
        for line in re.findall(r"\n+[^\n]*|[^\n]+", text):
            for start in range(0, len(line), LONGEST_TRAINING_LINE):
                yield line[start : start + LONGEST_TRAINING_LINE]


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Train on `texts` and write the model to `path`, whole or not at all.

    Deterministic: the same texts give the same bytes. ValueError when there is too little text for
    `vocab_size` pieces. Pieces may join words, never two lines: measured on the standard library,
    4,096 pieces give 3.5 bytes per token against 3.1 with sentencepiece's usual word boundaries.
    """
    blob = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts),
            model_writer=blob,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            max_sentencepiece_length=16,
            max_sentence_length=4 * LONGEST_TRAINING_LINE + 4,  # bytes; longer ones are dropped
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # more would not be deterministic by contract
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"a tokenizer with tokenizer.vocab_size={vocab_size} could not be trained on this "
            f"text: set a smaller tokenizer.vocab_size or give more text ({error})"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(blob.getvalue())
    temporary.replace(path)
