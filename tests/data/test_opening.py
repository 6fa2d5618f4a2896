"""A config becomes a loader: the default for real, a mixture, shards with their own tokenizer."""

import dataclasses
import itertools
import logging
from contextlib import closing
from pathlib import Path

import pytest
import torch

from data.config import DataConfig, MixtureSource, Packing, SourceKind, StageConfig
from data.loader import Loader
from data.opening import open_data, open_loader, open_places, open_text
from data.prepare import prepare_shards
from data.share import Share
from data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer
from tests.data.corpora import make_documents, stack, write_corpus

SHARE = Share(sequence_length=24, global_batch_size=8, micro_batch_size=2)


def test_the_default_is_opened_once_and_compresses_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(cache=str(tmp_path))
    with caplog.at_level(logging.INFO):
        loader = open_data(config, TokenizerConfig(), seed=0, share=SHARE)
    (held_out,) = loader.validation
    tokens = sum(len(loader.tokenizer.encode(text)) for text in held_out.texts)
    assert held_out.bytes / tokens > 3.2
    assert "bytes per token with 4096 pieces" in caplog.text
    models = list(tmp_path.rglob("*.model"))
    assert len(models) == 1
    before = models[0].stat()
    _, again = open_text(config, TokenizerConfig())
    assert again.fingerprint == loader.tokenizer.fingerprint
    assert models[0].stat().st_mtime_ns == before.st_mtime_ns


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("text")
    return write_corpus("files", folder, make_documents(41), cache=str(folder / "cache"))


@pytest.fixture(scope="module")
def shards(text: DataConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same documents, prepared."""
    out = tmp_path_factory.mktemp("shards")
    (place,) = open_places(text)
    prepare_shards(place.text, tokenizer, out, workers=1, longest=text.longest_document)
    return str(out)


def prepared(text: DataConfig, shards: str, **changed: object) -> DataConfig:
    return dataclasses.replace(
        text, kind=SourceKind.prepared, files=None, path=shards, num_workers=0, **changed
    )


def steps(loader: Loader, count: int, position: int = 0, state: dict | None = None) -> torch.Tensor:
    with closing(loader):
        taken = itertools.islice(loader.steps(position, state), count)
        return torch.cat([stack(batch) for step in taken for batch in step])


@pytest.mark.parametrize("packing", Packing)
def test_shards_bring_their_tokenizer_and_a_run_moves_to_them(
    text: DataConfig, shards: str, tokenizer: Tokenizer, packing: Packing
) -> None:
    """From text to its shards the fingerprint stays, and so do the rows after a resume."""
    config = dataclasses.replace(text, packing=packing, num_workers=0)
    on_text = open_loader(config, open_places(config), tokenizer, seed=3, share=SHARE)
    rows = steps(on_text, 12)
    changed = prepared(text, shards, packing=packing)
    on_shards = open_data(changed, TokenizerConfig(vocab_size=1000), seed=3, share=SHARE)
    assert on_shards.fingerprint == on_text.fingerprint
    assert on_shards.tokenizer.encode("def f(x):") == tokenizer.encode("def f(x):")
    again = on_text.steps(0)
    for _ in range(5):
        next(again)
    assert torch.equal(steps(on_shards, 7, 5 * 8, on_text.state()), rows[40:])
    texts = [loader.validation[0].texts for loader in (on_text, on_shards)]
    assert texts[0] == texts[1] and on_text.validation[0].bytes == on_shards.validation[0].bytes


def test_shards_of_another_tokenizer_are_refused(
    text: DataConfig, shards: str, tmp_path: Path, library: list[str]
) -> None:
    config = prepared(text, shards)
    with pytest.raises(ValueError, match=r"has 1000 pieces .*set tokenizer.vocab_size=1000"):
        open_data(config, TokenizerConfig(), seed=3, share=SHARE)
    _, other = open_text(
        dataclasses.replace(text, cache=str(tmp_path)), TokenizerConfig(vocab_size=400)
    )
    other.export(tmp_path)
    given = TokenizerConfig(path=str(tmp_path / "tokenizer.model"), vocab_size=400)
    with pytest.raises(ValueError, match=r"was prepared with tokenizer .{8} and this run has "):
        open_data(config, given, seed=3, share=SHARE)


def mixture(text: DataConfig, shards: str, **changed: object) -> DataConfig:
    """Text and shards, and from row 40 on shards alone."""
    sources = [
        MixtureSource(name="text", kind=SourceKind.files, files=text.files, weight=2),
        MixtureSource(name="shards", kind=SourceKind.prepared, path=shards, weight=1),
    ]
    stages = [StageConfig(120, {"shards": 1}), StageConfig(240, {"shards": 1, "text": 1})]
    return dataclasses.replace(
        text, kind=SourceKind.python, files=None, sources=sources, stages=stages, **changed
    )


def test_a_mixture_serves_each_source_s_own_rows_in_their_order(
    text: DataConfig, shards: str, tokenizer: Tokenizer
) -> None:
    """Its rows are those of the sources alone, by the numbers that progress() says."""
    config = mixture(text, shards, num_workers=0)
    loader = open_loader(config, open_places(config), tokenizer, seed=3, share=SHARE)
    alone = open_loader(text, open_places(text), tokenizer, seed=3, share=SHARE)
    streams = [[], [], [], []]
    for number, row in enumerate(steps(alone, 60)):
        streams[number % 4].append(row)
    served = {}
    for i, row in enumerate(steps(loader, 40)):
        source = int(loader._mixture.choices(i, 1, 1)[0])
        place = served.get((source, i % 4), 0)
        assert torch.equal(row, streams[i % 4][place])
        served[source, i % 4] = place + 1
    told = loader.progress(320)
    for source, name in enumerate(("shards", "text")):
        count = sum(rows for (number, _), rows in served.items() if number == source)
        assert told[f"data/{name}/tokens"] == count * 24
        assert count > 60 and told[f"data/{name}/epoch"] >= 0


def test_the_key_of_a_mixture_that_lacks_something_has_the_source_s_name(tmp_path: Path) -> None:
    config = DataConfig(
        sources=[MixtureSource(name="a", kind=SourceKind.files, files=f"{tmp_path}/*.x")]
    )
    with pytest.raises(ValueError, match=r"source a: data.files=.* matches no file"):
        open_places(config)
    with pytest.raises(ValueError, match=r"data.sources names 1 sources: prepare each by itself"):
        open_text(config, TokenizerConfig())


def test_the_tokenizer_of_a_mixture_is_trained_on_all_of_it(
    text: DataConfig, library: list[str], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    for i, one in enumerate(library[:20]):
        (tmp_path / "code" / f"{i}.py").write_text(one)
    sources = [
        MixtureSource(name="text", kind=SourceKind.files, files=text.files, weight=1),
        MixtureSource(name="code", kind=SourceKind.files, files=str(tmp_path / "code" / "*.py")),
    ]
    config = DataConfig(
        sources=sources, streams=4, validation_fraction=0.2, cache=str(tmp_path), num_workers=0
    )
    loader = open_data(config, TokenizerConfig(vocab_size=500), seed=0, share=SHARE)
    assert len(loader.tokenizer.encode("état")) < 4 and len(loader.tokenizer.encode("return")) < 4
    assert (
        load_tokenizer(next(tmp_path.rglob("*.model"))).fingerprint == loader.tokenizer.fingerprint
    )
