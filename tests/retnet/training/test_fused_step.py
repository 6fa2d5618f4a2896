"""The fused step is the stock step: same weights and state, and either goes on from the other."""

from typing import Any

import pytest
import torch

from tests.retnet.training.processes import run
from tests.retnet.training.workers import OPTIMIZER

# Relative to the largest element. The norm is summed in another order and the gradient divided
# where DeepSpeed multiplies by the inverse: the last bit of a clipped gradient, and what four or
# six steps make of it. Measured: 4.5e-7.
SAME = 2e-6


@pytest.fixture(scope="module", params=(1, 2), ids=("one rank", "two ranks"))
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What every rank found, by dtype, stage, accumulation and update."""
    folder = tmp_path_factory.mktemp(f"updates{request.param}")
    return run("updates", request.param, folder)


def _assert_same(one: list[Any], other: list[Any], key: Any) -> None:
    (results, weights, state), (other_results, other_weights, other_state) = one, other
    assert [r.tokens for r in results] == [r.tokens for r in other_results], key
    for name in ("loss", "grad_norm"):
        expected = [getattr(result, name) for result in other_results]
        assert [getattr(r, name) for r in results] == pytest.approx(expected, rel=SAME), key
    assert (weights is None) == (other_weights is None), key
    for tensor, expected in [
        *((weights[name], other_weights[name]) for name in weights or ()),
        *zip(state, other_state, strict=True),
    ]:
        size = expected.double().abs().max()
        furthest = (tensor.double() - expected.double()).abs().max()
        assert furthest <= SAME * size, (key, float(furthest / size))


def test_the_fused_step_is_the_stock_step(ranks: list[Any]) -> None:
    cases = [key[:3] for key in ranks[0] if key[-1] == "fused"]
    assert len(cases) == 2 * 3 * 2
    for key in cases:
        norms = [result.grad_norm for result in ranks[0][*key, "stock"][0]]
        assert max(norms) > OPTIMIZER.gradient_clipping > 0, f"{key}: nothing was clipped"
        for found in ranks:
            _assert_same(found[*key, "fused"], found[*key, "stock"], key)


def test_either_goes_on_from_the_checkpoint_of_the_other(ranks: list[Any]) -> None:
    cases = [key for key in ranks[0] if key[-1] == "stock, fused"]
    assert len(cases) == 2 * 3
    for key in cases:
        for found in ranks:
            _assert_same(found[key], found[*key[:3], "fused, stock"], key)
            counters = {float(value) for value in found[key][2] if value.dim() == 0}
            assert counters == {6.0}, key
            moved = found[key][2], found[*key[:3], "stock"][2]
            assert not any(map(torch.equal, *moved)), key


def test_a_step_of_the_fused_update_looks_at_no_tensor(ranks: list[Any]) -> None:
    for found in ranks:
        looks = {key[:-1]: names for key, names in found.items() if key[-1] == "looks"}
        assert len(looks) == 2 * 3 * 2 * 2
        for key, names in looks.items():
            assert bool(names) == (key[-1] == "stock"), (key, names)
