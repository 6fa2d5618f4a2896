"""Which source a row is of follows from its number alone, and every source's own rows go on."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, MixtureSource, StageConfig
from data.mixture import Mixture, mixed_rows, mixture_of

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
WEIGHTS = st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5]), min_size=4, max_size=4)
SEVERAL = st.lists(WEIGHTS.filter(any), min_size=1, max_size=3)


def mixture(weights: list[list[float]], seed: int, every: int = 1000) -> Mixture:
    return Mixture([(every * number, one) for number, one in enumerate(weights)], seed)


@QUICK
@given(
    weights=SEVERAL, seed=st.integers(0, 9), first=st.integers(0, 5000), stride=st.integers(1, 70)
)
def test_a_choice_is_of_the_position_only(
    weights: list[list[float]], seed: int, first: int, stride: int
) -> None:
    made = mixture(weights, seed)
    every = made.choices(0, 1, first + 50 * stride)
    assert np.array_equal(made.choices(first, stride, 50), every[first::stride])


@QUICK
@given(weights=SEVERAL, seed=st.integers(0, 9))
def test_every_stretch_of_global_rows_has_its_shares(weights: list[list[float]], seed: int) -> None:
    """Within 6 rows: 5.2 were the most in stretches of up to 200,000 rows."""
    made = mixture(weights, seed, every=20_000)
    for number, one in enumerate(weights):
        chosen = made.choices(20_000 * number, 1, 20_000)
        for source, weight in enumerate(one):
            is_it = chosen == source
            drift = np.cumsum(is_it - weight / sum(one))
            assert max(drift.max(), 0) - min(drift.min(), 0) < 6
            assert weight or not is_it.any()


@QUICK
@given(weights=SEVERAL, row=st.integers(0, 800), stream=st.integers(0, 6))
def test_rows_before_is_counting(weights: list[list[float]], row: int, stream: int) -> None:
    made = mixture(weights, 3)
    counts = np.bincount(made.choices(stream, 7, row), minlength=4)
    assert np.array_equal(made.rows_before(stream, 7, row), counts)
    first = row // 3
    rest = made.rows_before(stream, 7, row, first)
    assert np.array_equal(made.rows_before(stream, 7, first) + rest, counts)


@QUICK
@given(weights=SEVERAL, first=st.integers(0, 500))
def test_each_source_s_rows_go_on_without_a_gap(weights: list[list[float]], first: int) -> None:
    """Read from any row on, all streams together serve each source's rows in their order."""
    made, streams = mixture(weights, 1), 4

    def read(source: int, row: int) -> Iterator[int]:
        return itertools.count(row)

    for stream in range(streams):
        counts = made.rows_before(stream, streams, first).tolist()
        served = mixed_rows(read, made, stream, streams, first, counts)
        for row, (source, number) in enumerate(itertools.islice(served, 300), first):
            assert source == made.choices(stream + streams * row, 1, 1)[0]
            assert number == counts[source]
            counts[source] += 1


def test_one_source_is_every_row() -> None:
    assert not mixture_of(DataConfig(), [""], 0).choices(5, 3, 100).any()


def sources(**weights: float) -> list[MixtureSource]:
    return [MixtureSource(name=name, weight=weight) for name, weight in weights.items()]


def test_the_order_of_the_sources_and_the_size_of_the_weights_do_not_matter() -> None:
    one = DataConfig(sources=sources(code=1, web=3))
    other = DataConfig(sources=sources(web=0.75, code=0.25))
    names = ["code", "web"]
    a, b = (mixture_of(config, names, 0).choices(0, 1, 1000) for config in (one, other))
    assert np.array_equal(a, b)
    assert (
        one.proportions() == [[0, {"code": 0.25, "web": 0.75}]]
        and one.proportions() == other.proportions()
    )


def test_stages_hold_from_their_position_on() -> None:
    stages = [StageConfig(100, {"web": 1}), StageConfig(200, {"code": 1, "web": 1})]
    config = DataConfig(sources=sources(code=1, web=0), stages=stages)
    chosen = mixture_of(config, ["code", "web"], 0).choices(0, 1, 300)
    assert not chosen[:100].any() and chosen[100:200].all()
    assert 40 < chosen[200:].sum() < 60


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ({"sources": sources(a=0)}, r"from row 0 on are 0: none may be below 0"),
        ({"sources": [*sources(a=1), *sources(a=1)]}, r"name a twice"),
        ({"sources": sources(held_out=1)}, r"name one held_out"),
        ({"stages": [StageConfig(0, {})]}, r"data.stages weighs data.sources, and there are none"),
        (
            {"sources": sources(code=1, web=1), "stages": [StageConfig(5, {"wbe": 1})]},
            r"gives weights for 'wbe', which is no source: code, web",
        ),
        (
            {"sources": sources(a=1), "stages": [StageConfig(5, {"a": 1}), StageConfig(5, {})]},
            r"position 5 after 5: positions are 0 or more and increase",
        ),
        ({"sources": sources(a=1), "files": "x"}, r"data.kind=python another one"),
        ({"validation_fraction": 0.0}, r"data.validation_sets sets"),
    ],
)
def test_a_mixture_that_cannot_be_is_answered_with_the_key(
    given_: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**given_)


def test_a_source_without_a_name_or_with_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a name .* one has name='a/b'"):
        MixtureSource(name="a/b")
    with pytest.raises(ValueError, match=r"source a: weight=-1 must be 0 or more"):
        MixtureSource(name="a", weight=-1)
