"""The fingerprint is of what decides the rows and nothing else; a difference is told in words."""

from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig, Packing
from data.fingerprint import check_resume, differences, digest
from data.loader import Loader
from data.opening import open_loader, open_places
from data.share import Share
from data.tokenizer import Tokenizer
from tests.data.corpora import make_documents, write_corpus

GOLDEN = {
    "files": "2011ec385ec9860fc8df57a39a3abf3be064fca158fab3bf577751da8bb7152f",
    "many jsonl": "65ba87c2d6310568fbf6fec6c0411fb436ee7f661207437c0f6883a2ce01b500",
}
"""What was in checkpoints before there were mixtures, shards and packing, for a tokenizer whose own
fingerprint is all zeros."""


def open_with(config: DataConfig, tokenizer: Tokenizer, seed: int = 3, **changed: int) -> Loader:
    shape = {"sequence_length": 24, "global_batch_size": 8, "micro_batch_size": 2} | changed
    return open_loader(config, open_places(config), tokenizer, seed=seed, share=Share(**shape))


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_digest_of_a_run_with_one_source_stays_what_it_was(
    kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """So that a run that was begun before may go on."""
    loader = open_with(write_corpus(kind, tmp_path, make_documents(41)), tokenizer)
    assert digest(loader.parts | {"tokenizer": "0" * 64}) == GOLDEN[kind]
    with pytest.raises(
        ValueError, match="was trained on other data: the files, tok.*its manifest.json"
    ):
        check_resume(tmp_path, "f" * 64, None, loader.parts, 8, False, True)
    assert check_resume(tmp_path, loader.fingerprint, None, loader.parts, 8, False, True) == []


def test_the_fingerprint_is_of_what_decides_the_rows_and_of_nothing_else(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def fingerprint(changed: dict[str, Any] | None = None, **settings: Any) -> str:
        config = write_corpus("files", tmp_path, make_documents(41), **settings)
        return open_with(config, tokenizer, **(changed or {})).fingerprint

    first = fingerprint()
    assert first == fingerprint({"global_batch_size": 16, "micro_batch_size": 4})
    assert first == fingerprint({"rank": 1, "world_size": 2}, num_workers=2, shuffle_window=99)
    others = {
        fingerprint({"seed": 4}),
        fingerprint({"sequence_length": 25}),
        fingerprint(streams=2),
        fingerprint(packing=Packing.best_fit),
        fingerprint(longest_document=1000),
        fingerprint(validation_fraction=0.3),
    }
    assert len(others) == 6 and first not in others


PARTS = {
    "source": "a" * 64,
    "tokenizer": "b" * 64,
    "sequence_length": 24,
    "streams": 4,
    "window": None,
    "fraction": 0.2,
    "seed": 3,
    "global_batch_size": 8,
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": "c" * 64}, r"the files aaaaaaaa -> cccccccc \(these are other documents"),
        ({"tokenizer": "c" * 64}, r"bbbbbbbb -> cccccccc \(token ids would mean other text"),
        ({"sequence_length": 32}, r"sequence_length 24 -> 32 \(rows would be cut elsewhere"),
        ({"streams": 8}, r"data.streams 4 -> 8 \(documents would come in another order"),
        ({"window": 9}, r"data.shuffle_window null -> 9 \("),
        ({"fraction": 0.1}, r"0.2 -> 0.1 \(documents that were trained on would be validated on"),
        ({"packing": "best_fit"}, r'data.packing "cut" -> "best_fit" \(rows would be made'),
        ({"seed": 4, "order": "shards"}, r'data.order "source" -> "shards" .*; seed 3 -> 4 \('),
    ],
)
def test_other_data_is_refused_with_what_differs_and_what_it_means(
    changed: dict[str, Any], words: str
) -> None:
    new = PARTS | changed

    def check(allow: bool) -> list[str]:
        return check_resume(Path("run/step-2"), digest(PARTS), PARTS, new, 16, allow, True)

    with pytest.raises(ValueError, match=rf"run/step-2 was trained on other data: .*{words}"):
        check(allow=False)
    (said,) = check(allow=True)
    assert said.startswith("data.allow_change: goes on although ")


def test_another_batch_size_goes_on_and_is_said() -> None:
    new = PARTS | {"global_batch_size": 16}
    (said,) = check_resume(Path("p"), digest(PARTS), PARTS, new, 16, False, True)
    assert "global_batch_size 8 -> 16: the same rows go on, 16 a step" in said
    assert digest(PARTS) == digest(new)


def test_another_length_without_cursors_is_refused_even_where_changes_are_allowed() -> None:
    new = PARTS | {"sequence_length": 32}
    with pytest.raises(ValueError, match=r"has no cursors.*sequence_length=32.*put back 24"):
        check_resume(Path("p"), digest(PARTS), PARTS, new, 16, True, False)


def mixed(stages: list[Any], **sources: str) -> dict[str, Any]:
    one = {"window": None, "fraction": 0.2}
    own = {name: one | {"source": source} for name, source in sources.items()}
    rest = {key: PARTS[key] for key in ("tokenizer", "sequence_length", "streams", "seed")}
    return rest | {"sources": own, "stages": stages}


HALF = [0, {"a": 0.5, "b": 0.5}]


def test_weights_may_change_from_the_position_on_and_not_before() -> None:
    old = mixed([HALF], a="1", b="2")
    later = mixed([HALF, [64, {"a": 1.0}]], a="1", b="2")
    (found,) = differences(old, later, 64)
    assert not found.refused and "from row 64 on: no change -> from row 64: a 1.00" in found.text
    (found,) = differences(old, later, 65)
    assert found.refused and "weights may change from row 65 on" in found.meaning


def test_a_new_source_may_join_later_and_an_old_one_may_not_be_another() -> None:
    old = mixed([HALF], a="1", b="2")
    joined = mixed([HALF, [64, {"c": 1.0}]], a="1", b="2", c="3")
    assert not any(found.refused for found in differences(old, joined, 64))
    changed = differences(old, mixed([HALF], a="1", b="3"), 64)
    assert [found.text for found in changed] == ['b: the files "2" -> "3"']
    gone = differences(old, mixed([[0, {"a": 1.0}]], a="1"), 64)
    assert gone[0].text == "b is no source any more" and all(found.refused for found in gone)
    assert differences(old, PARTS, 64)[-1].refused
