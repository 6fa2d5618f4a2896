"""What a config names is looked for before a run starts, and nothing more is done."""

import pytest

from data.config import DataConfig, MixtureSource, SourceKind
from data.presence import check_presence
from data.tokenizer import TokenizerConfig


def files(pattern: object, name: str) -> MixtureSource:
    return MixtureSource(kind=SourceKind.files, files=str(pattern), name=name)


def test_what_is_there_passes(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "index.json").write_text("{}")
    (tmp_path / "own.model").touch()
    data = DataConfig(
        kind=SourceKind.mixture,
        sources=[
            files(tmp_path / "*.txt", "a"),
            MixtureSource(kind=SourceKind.prepared, path=str(tmp_path / "shards"), name="b"),
            MixtureSource(kind=SourceKind.dataset, dataset="user/far-away", name="c"),
        ],
    )
    check_presence(data, TokenizerConfig(path=str(tmp_path / "own.model")))


def test_a_source_that_is_not_there_is_named(tmp_path):
    data = DataConfig(validation_sets=[files(tmp_path / "*.txt", "more")])
    with pytest.raises(ValueError, match=r"source more: data.files=.*matches no file"):
        check_presence(data, TokenizerConfig())


def test_addresses_are_not_asked_before_a_run_starts():
    far = "s3://nowhere.invalid/shards"
    check_presence(DataConfig(kind=SourceKind.prepared, path=far), TokenizerConfig())
