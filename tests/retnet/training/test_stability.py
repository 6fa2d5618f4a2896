"""The window judges by what came before alone, and is not moved by what it should judge."""

import json
import math

import pytest
import torch

from retnet.training.stability import Stability, StabilityConfig, strikes_within

CONFIG = StabilityConfig(window=16, spike=8.0)
CPU = torch.device("cpu")


def window(losses: list[float], norms: list[float] | None = None, **changed: float) -> Stability:
    """A window after these steps."""
    stability = Stability(StabilityConfig(**(vars(CONFIG) | changed)), CPU, {})
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        stability.add(torch.tensor(loss), torch.tensor(norm))
    return stability


def test_nothing_finite_is_refused_before_enough_was_seen() -> None:
    few = window([2.0] * 3).limits()
    assert math.isinf(few.loss) and math.isinf(few.norm)
    assert window([2.0] * 4).limits().loss < 3.0


def test_one_huge_value_hardly_moves_the_limits() -> None:
    losses = [3.0 + 0.1 * (step % 3) for step in range(16)]
    before, after = window(losses).limits(), window([*losses, 1e9], [1.0] * 16 + [1e9]).limits()
    assert after.loss == pytest.approx(before.loss, abs=1.0) and after.norm < 10.0


def test_what_is_not_finite_never_enters() -> None:
    good = window([2.0, 2.1, 2.2, 2.3])
    spoiled = window([2.0, 2.1, 2.2, 2.3, math.nan, math.inf], [1.0] * 4 + [math.inf, math.nan])
    assert good.recent() == spoiled.recent()


def test_a_lasting_change_of_level_is_accepted_after_half_a_window() -> None:
    stability = window([2.0] * 16)
    refused = 0
    while stability.limits().loss < 5.0:
        stability.add(torch.tensor(5.0), torch.tensor(1.0))
        refused += 1
        assert refused <= 9
    assert refused > 1


def test_the_window_is_the_same_after_a_checkpoint() -> None:
    """JSON gives a float64 back to the bit; the limits of a resumed run are the same."""
    stability = window(
        [2.0 + 0.1 / (step + 3) for step in range(11)], [0.3 + 0.01 * i for i in range(11)]
    )
    stored = json.loads(json.dumps(stability.recent()))
    resumed = Stability(CONFIG, CPU, stored)
    for _ in range(9):
        assert all(map(torch.equal, stability.limits(), resumed.limits()))
        for each in (stability, resumed):
            each.add(torch.tensor(1.9), torch.tensor(0.7))


def test_limits_follow_the_units() -> None:
    """Losses shift (nats), norms scale: no absolute number decides but the floors."""
    norms = [math.exp(0.3 * (step % 5)) for step in range(16)]
    losses = [math.log(norm) for norm in norms]
    one = window(losses, norms).limits()
    other = window([loss + 7.0 for loss in losses], [1000.0 * norm for norm in norms]).limits()
    assert float(other.loss) == pytest.approx(float(one.loss) + 7.0, rel=1e-6)
    assert float(other.norm) == pytest.approx(1000.0 * float(one.norm), rel=1e-5)


def test_without_a_spike_factor_only_the_infinite_is_refused() -> None:
    limits = window([2.0] * 16, spike=0.0).limits()
    assert math.isinf(limits.loss) and math.isinf(limits.norm)


def test_strikes_count_within_a_window() -> None:
    assert strikes_within([1, 5, 9], 12, 8) == [5, 9]


@pytest.mark.parametrize(
    "wrong", [{"window": 4}, {"spike": -1.0}, {"strikes": 0}, {"max_rollbacks": -1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"stability.{next(iter(wrong))} is"):
        StabilityConfig(**wrong)
