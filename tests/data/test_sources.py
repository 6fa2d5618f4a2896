"""Every kind of source keeps the laws of order; what cannot be read is answered with a sentence."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig, SourceKind
from data.opening import open_place
from data.sources import open_source
from data.tokenizer import Tokenizer
from tests.data.corpora import KINDS, STREAMS, make_documents, open_text, write_corpus


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_every_document_once(kind: str, tmp_path: Path) -> None:
    documents = make_documents(101)
    source = open_source(write_corpus(kind, tmp_path, documents))
    epochs = []
    for epoch in range(2):
        streams = [list(source.documents(s, STREAMS, epoch, 5)) for s in range(STREAMS)]
        assert Counter(text for stream in streams for text in stream) == Counter(documents)
        epochs.append(streams)
    assert epochs[0] != epochs[1]
    assert Counter(source.validation_documents()) == Counter(documents)


@pytest.mark.parametrize("kind", KINDS)
def test_skipping_is_the_same_as_reading_on(kind: str, tmp_path: Path) -> None:
    source = open_source(write_corpus(kind, tmp_path, make_documents(101)))
    whole = list(source.documents(1, STREAMS, 3, 0))
    for skip in range(len(whole) + 2):
        assert list(source.documents(1, STREAMS, 3, 0, skip)) == whole[skip:]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_shuffled_by_the_seed(kind: str, tmp_path: Path) -> None:
    config = write_corpus(kind, tmp_path, make_documents(101))
    first, again = open_source(config), open_source(config)
    assert list(first.documents(0, 4, 0, 1)) == list(again.documents(0, 4, 0, 1))
    assert list(first.documents(0, 4, 0, 1)) != list(again.documents(0, 4, 0, 2))
    assert list(first.documents(0, 1, 0, 1)) != list(first.validation_documents())


def test_more_shards_than_needed_are_shared_out_unsplit(tmp_path: Path) -> None:
    """Row groups become shards: then a stream reads its own ones and no other."""
    source = open_source(write_corpus("row groups", tmp_path, make_documents(101)))
    sizes = [len(list(source.documents(s, STREAMS, 0, 0))) for s in range(STREAMS)]
    assert sum(sizes) == 101 and max(sizes) - min(sizes) >= 2


def test_a_split_of_its_own_leaves_training_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = make_documents(40)
    for split, texts in (("train", documents), ("validation", ["kept", "apart"])):
        write_corpus("jsonl", tmp_path / split, texts)
        (tmp_path / split / "a.jsonl").rename(tmp_path / f"{split}.jsonl")
        (tmp_path / split).rmdir()
    config = DataConfig(
        kind=SourceKind.dataset,
        dataset=str(tmp_path),
        validation_split="validation",
        streams=STREAMS,
    )
    source = open_source(config)
    assert open_text(config, tokenizer).held_out(10**6).texts == ["kept", "apart"]
    assert Counter(source.documents(0, 1, 0, 0)) == Counter(documents)
    assert config.held_out_of_training == 0
    with pytest.raises(ValueError, match=r"split test \(data.split or data.validation_split\)"):
        open_source(DataConfig(kind=SourceKind.dataset, dataset=str(tmp_path), split="test"))


def test_the_fingerprint_follows_the_files_and_not_their_folder(tmp_path: Path) -> None:
    def fingerprint(folder: str, count: int) -> str:
        config = write_corpus("many jsonl", tmp_path / folder, make_documents(count))
        return open_source(config).fingerprint()

    assert fingerprint("here", 40) == fingerprint("there", 40)
    assert fingerprint("here", 40) != fingerprint("elsewhere", 41)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": SourceKind.files}, r"data.kind=files needs data.files"),
        ({"kind": SourceKind.files, "files": "/none/*.x"}, r"data.files=/none/\*.x matches no"),
        ({"kind": SourceKind.dataset}, r"needs data.dataset"),
        ({"kind": SourceKind.dataset, "dataset": "json"}, r"dataset=json needs data.data_files"),
        (
            {"kind": SourceKind.dataset, "dataset": "json", "data_files": ["/none/*.x"]},
            r"data.data_files has /none/\*.x, which matches no file",
        ),
        ({"kind": SourceKind.prepared}, r"data.kind=prepared needs data.path, the folder"),
        ({"validation_split": "test"}, r"data.validation_split=test needs data.kind=dataset"),
        ({"validation_fraction": 0.0}, r"data.validation_fraction=0.0 must lie between"),
        ({"streams": 0}, r"data.streams=0 must be 1 or more"),
        ({"streams": 100_000}, r"gives [0-9]+ files, but each of data.streams=100000"),
        (
            {"kind": SourceKind.dataset, "dataset": "a/b", "validation_split": "train"},
            r"data.validation_split=train is data.split as well",
        ),
    ],
)
def test_what_cannot_be_opened_is_answered_with_the_key(
    settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_place(config := DataConfig(**settings), "", config)


def test_what_the_data_lacks_is_answered_with_what_there_is(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def open_with(**settings: object) -> None:
        config = write_corpus("jsonl", tmp_path, make_documents(12), **settings)
        open_source(config).check_streams(config.streams)
        open_text(config, tokenizer).held_out(10**6)

    with pytest.raises(ValueError, match=r"data.text_column=body: its columns are n, text"):
        open_with(text_column="body")
    with pytest.raises(ValueError, match=r"data.text_column=n holds int, not text"):
        open_with(text_column="n")
    with pytest.raises(ValueError, match=r"has 12 documents, but each of data.streams=13 .*=12"):
        open_with(streams=13)
    with pytest.raises(ValueError, match=r"no held-out document among 12: raise data.validation_f"):
        open_with(validation_fraction=1e-9)


def test_a_hub_or_a_server_that_does_not_answer_is_the_machine_s_fault() -> None:
    """In a process of its own, told to stay off the network as a node without one is. What an
    address has behind its question mark may be a signature, and is not told."""
    program = """
from data.config import DataConfig, SourceKind
from data.sources import open_source
file = dict(dataset="json", data_files=["http://127.0.0.1:9/a.jsonl?sig=SECRET"])
for settings in (dict(dataset="nobody/nothing"), file):
    try:
        open_source(DataConfig(kind=SourceKind.dataset, **settings))
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    hub, file = done.stdout.splitlines()
    assert hub.startswith("data.dataset=nobody/nothing cannot be reached: check the name")
    assert file.startswith("data.data_files: nothing could be read") and "SECRET" not in file


@pytest.mark.parametrize("good", [1, 40_000], ids=["at the beginning", "far inside"])
def test_a_broken_line_is_answered_with_a_sentence(good: int, tmp_path: Path) -> None:
    line = '{"text": "a text that is some seventy bytes long, so that there are blocks"}\n'
    (tmp_path / "broken.jsonl").write_text(line * good + '{"text": b\n')
    pattern = str(tmp_path / "*.jsonl")
    config = DataConfig(kind=SourceKind.dataset, dataset="json", data_files=[pattern])
    with pytest.raises(ValueError, match="data.dataset=json cannot be read: JSON parse error"):
        for _ in open_source(config).validation_documents():
            pass
