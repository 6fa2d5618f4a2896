"""A tokenizer loses nothing, is made the same way twice, and exports to the same ids."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from data.tokenizer import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    open_tokenizer,
    train_tokenizer,
)
from data.tokenizer.__main__ import main
from data.tokenizer.sentence_piece import ESCAPED_SPACE

AWKWARD = [
    *(" ", "  ", "\t", "\n", "\r\n", "\0", "\u2581", "\u2581\u2581 ", "<s>", "</s>", "<unk>"),
    *("<0x0A>", "é", "e\u0301", "ﬁ", "漢", "😀", "\ufeff", "\u2047", "\u2585", "\ufffd", "\x1b"),
    *("\u200b", "\U0010ffff", "a", "0", "return", "self.", "def ", "\n        ", " " * 33),
]


def awkward_texts(count: int) -> Iterator[str]:
    """Seeded mixtures of what tokenizers get wrong, and of any characters at all."""
    rng = random.Random(0)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for _ in range(count):
        yield "".join(rng.choices(AWKWARD, k=rng.randrange(40)))
        yield "".join(rng.choices(characters, k=rng.randrange(20)))


def test_decode_gives_any_text_back(tokenizer: Tokenizer, library: list[str]) -> None:
    for text in [*awkward_texts(1000), *library]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_an_exported_tokenizer_gives_the_same_ids_and_text(
    tokenizer: Tokenizer, library: list[str], tmp_path: Path
) -> None:
    tokenizer.export(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == tokenizer.vocab_size
    assert (loaded.bos_token_id, loaded.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for text in [*awkward_texts(1000), *library]:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert SentencePieceTokenizer(tmp_path / "tokenizer.model").encode(
        library[0]
    ) == tokenizer.encode(library[0])


@pytest.mark.parametrize("across_lines", [False, True])
def test_a_text_encoded_in_parts_has_the_ids_of_the_whole(
    library: list[str], tmp_path: Path, across_lines: bool
) -> None:
    """Also with a model that has pieces across the ends of lines, which must stay whole."""
    if across_lines:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text[:1000] for text in library[:80]),
            model_prefix=str(tmp_path / "a"),
            model_type="bpe",
            vocab_size=500,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            minloglevel=2,
        )
    else:
        train_tokenizer(library[:20], tmp_path / "a.model", 500)
    tokenizer = SentencePieceTokenizer(tmp_path / "a.model")
    whole = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    pieces = [whole.id_to_piece(index) for index in range(whole.vocab_size())]
    assert across_lines == any(re.search(r"[^\n]\n", piece) for piece in pieces)
    awkward = ["\n".join(awkward_texts(100)), 3000 * "\n", 300 * "a\n\n", "\n" + 999 * "b" + "\n"]
    for text in [*library, *awkward]:
        text = text.replace(ESCAPED_SPACE, "")
        assert tokenizer.encode(text) == whole.encode(text)


def test_newline_and_indentation_are_pieces(tokenizer: Tokenizer) -> None:
    """Else a line of code costs a token for every space before it."""
    assert len(tokenizer.encode(" " * 16)) == 1
    assert len(tokenizer.encode("\n        return")) <= 2


def test_training_twice_gives_the_same_file(library: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(library[:20], tmp_path / name, 500)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_line_longer_than_the_trainer_takes_still_counts(tmp_path: Path) -> None:
    end = "abcdefgh zyxwvuts " * 20_000
    train_tokenizer(["-" * 5000 + end], tmp_path / "long.model", 300)
    assert len(SentencePieceTokenizer(tmp_path / "long.model").encode(end)) < len(end) / 8


def test_a_cached_tokenizer_is_not_trained_again(library: list[str], tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=500, train_bytes=100_000)
    first = open_tokenizer(config, lambda: library, tmp_path, "key")
    again = open_tokenizer(config, lambda: pytest.fail("read the texts again"), tmp_path, "key")
    assert first.fingerprint == again.fingerprint


def test_a_model_with_a_dummy_prefix_is_made_lossless(library: list[str], tmp_path: Path) -> None:
    """As llama's own tokenizer has it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library[0].splitlines()),
        model_prefix=str(tmp_path / "llama"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    opened = SentencePieceTokenizer(tmp_path / "llama.model")
    opened.export(tmp_path / "export")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export")
    for text in awkward_texts(200):
        assert opened.decode(opened.encode(text)) == text
        assert loaded(text)["input_ids"] == [opened.bos_id, *opened.encode(text)]


def test_a_lossy_model_is_refused(library: list[str], tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(library[0].splitlines()),
        model_prefix=str(tmp_path / "lossy"),
        model_type="unigram",
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="not a BPE model.*no byte fallback.*normalizes text"):
        SentencePieceTokenizer(tmp_path / "lossy.model")


def test_errors_name_both_numbers_and_the_key(library: list[str], tmp_path: Path) -> None:
    train_tokenizer(library[:20], tmp_path / "a.model", 500)

    def open_with(**settings: object) -> Tokenizer:
        return open_tokenizer(TokenizerConfig(**settings), lambda: ["short"], tmp_path, "key")

    with pytest.raises(ValueError, match=r"has 500 pieces.*4096.*tokenizer.vocab_size=500"):
        open_with(path=str(tmp_path / "a.model"))
    with pytest.raises(ValueError, match=r"tokenizer.path=.*none.model is no file"):
        open_with(path=str(tmp_path / "none.model"))
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=4096 could not be trained"):
        open_with()
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=5 leaves no room"):
        TokenizerConfig(vocab_size=5)


def write_fast(folder: Path, texts: list[str], bos: str | None, **added: object) -> Path:
    """A Hugging Face folder with a byte-level BPE, such as GPT-2's: its own post-processor, and a
    length it would truncate to."""
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    special = ["<|endoftext|>", *filter(None, [bos])]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    fast.enable_truncation(8)
    fast.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": {"content": "<|endoftext|>", "special": True}, "bos_token": bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | added))
    return folder


@pytest.mark.parametrize("bos", ["<s>", None])
def test_a_fast_tokenizer_gives_any_text_back_and_exports_to_the_same_ids(
    library: list[str], tmp_path: Path, bos: str | None
) -> None:
    """Special tokens' strings stay text; without a <bos> of its own, <eos> begins documents."""
    opened = load_tokenizer(write_fast(tmp_path, library[:20], bos))
    assert isinstance(opened, HuggingFaceTokenizer)
    assert opened.begins_with_eos == (bos is None) == (opened.bos_id == opened.eos_id)
    opened.export(tmp_path / "export")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export")
    again = load_tokenizer(tmp_path / "export", opened.fingerprint)
    assert len(loaded) == opened.vocab_size == 600
    assert again.fingerprint == opened.fingerprint
    for text in [*awkward_texts(200), "<|endoftext|><s>", *library[:9]]:
        ids = opened.encode(text)
        assert opened.decode(ids) == text and not {opened.bos_id, opened.eos_id} & set(ids)
        assert loaded(text)["input_ids"] == [opened.bos_id, *ids]
        assert loaded.decode(ids, skip_special_tokens=True) == text
        assert again.encode(text) == ids
    assert (again.bos_id, again.eos_id) == (opened.bos_id, opened.eos_id)


def test_what_makes_a_fast_tokenizer_unfit_is_said(library: list[str], tmp_path: Path) -> None:
    write_fast(tmp_path, library[:2], None)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no <eos>: .*eos_token, and has None"):
        load_tokenizer(tmp_path / "tokenizer.json")
    write_fast(tmp_path, library[:2], None)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"makes '<\|endoftext\|>' in a text the special token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is no fast tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer.json: give a fast tokenizer's folder"):
        load_tokenizer(tmp_path / "none.json")


def test_an_exported_model_keeps_its_ids_and_the_fingerprint_it_is_given(
    tokenizer: Tokenizer, library: list[str], tmp_path: Path
) -> None:
    """As shards bring it: the folder's exact file is taken, and it is the same tokenizer."""
    tokenizer.export(tmp_path)
    again = load_tokenizer(tmp_path, tokenizer.fingerprint)
    assert isinstance(again, SentencePieceTokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(library[1]) == tokenizer.encode(library[1])


def test_the_command_trains_one_on_the_data_of_a_run(library: list[str], tmp_path: Path) -> None:
    for i, text in enumerate(library[:20]):
        (tmp_path / f"{i}.py").write_text(text)
    words = ["data=files", f"data.files='{tmp_path}/*.py'", "tokenizer.vocab_size=500"]
    out = tmp_path / "my.model"
    main([*words, "data.validation_fraction=0.1", f"out={out}"])
    assert load_tokenizer(out).vocab_size == 500
    with pytest.raises(ValueError, match=r"my.model is there already"):
        main([*words, f"out={out}"])
    with pytest.raises(ValueError, match=r"say once where .* out=my.model"):
        main(words)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (junk := tmp_path / "junk.model").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"junk.model is no sentencepiece model"):
        SentencePieceTokenizer(junk)
