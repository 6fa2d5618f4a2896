"""A bad step is none: on any rank, at any stage, for any fault; and the run goes on beside it."""

from typing import Any

import pytest
import torch

from tests.retnet.training.processes import run
from tests.retnet.training.workers import DTYPES, ways
from tests.retnet.training.workers_steps import KINDS

WORDS = {
    "nan loss": "the loss on rank 1 is nan",
    "infinite gradient": "the loss is finite and the gradient is not",
    "loss spike": "the loss ",
    "norm spike": "the gradient's norm ",
}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return run("refused", 2, tmp_path_factory.mktemp("refused"), module="workers_steps")


def test_a_bad_step_moves_nothing_and_the_next_one_is_as_if_it_had_not_been(
    found: list[dict[str, Any]],
) -> None:
    """Weights, moments and counter to the bit, on both ranks, of which only the last was hit."""
    ranks = [each["steps"] for each in found]
    assert {key[1] for key in ranks[0] if key[0] == "bfloat16"} == {0, 1, 2, 3}
    assert len(ranks[0]) == sum(len(ways(dtype)) for dtype in DTYPES)
    for key in ranks[0]:
        told = [[result.refused for result in rank[key][0][0]] for rank in ranks]
        assert told[0] == told[1], key
        assert told[0][:3] == [None] * 3 and told[0][-1] is None, (key, told[0])
        for kind, result in zip(KINDS, ranks[0][key][0][0][3:-1], strict=True):
            assert result.refused is not None, (key, kind)
            assert result.refused.startswith(WORDS[kind]), (key, kind, result)
            assert result.finite == ("spike" in kind), (key, kind)
        for rank in ranks:
            (_, (before, *after), end, weights), (_, _, undisturbed, expected) = rank[key]
            assert len(after) == len(KINDS) and all(_same(before, each) for each in after), key
            assert not _same(before, end) and _same(end, undisturbed), key
            assert weights is None or _same(weights, expected), key


def test_a_judged_step_waits_for_no_device(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["looks"] == {0: [], 1: [], 2: []}
