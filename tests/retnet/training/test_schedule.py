"""The curve of the learning rate, against a table worked by hand."""

import pytest

from retnet.training.schedule import ScheduleConfig, ScheduleKind, learning_rate

# peak 1.0, 4 steps of warmup, 12 steps, last rate 0.2; wsd decays over the last half.
# After warmup 8 steps remain: linear falls by 0.1 a step; cosine is
# 0.2 + 0.8 * (1 + cos(pi * n / 8)) / 2 with n = 1..8.
WARMUP = [0.25, 0.5, 0.75, 1.0]
TABLE = {
    ScheduleKind.linear: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
    ScheduleKind.cosine: [
        0.969551813, 0.882842712, 0.753073373, 0.6, 0.446926627, 0.317157288, 0.230448187, 0.2,
    ],
    ScheduleKind.wsd: [1.0, 1.0, 13 / 15, 11 / 15, 9 / 15, 7 / 15, 5 / 15, 3 / 15],
    ScheduleKind.constant: [1.0] * 8,
}  # fmt: skip


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_the_rates_are_those_worked_by_hand(kind: ScheduleKind) -> None:
    config = ScheduleConfig(kind, warmup_steps=4, final_fraction=0.2, decay_fraction=0.5)
    rates = [learning_rate(config, 1.0, step, 12) for step in range(12)]
    assert rates == pytest.approx(WARMUP + TABLE[kind], abs=1e-9)


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_the_rate_scales_with_the_peak_and_stays_within_it(kind: ScheduleKind) -> None:
    config = ScheduleConfig(kind, warmup_steps=7, final_fraction=0.1, decay_fraction=0.3)
    for step in range(150):
        rate = learning_rate(config, 3e-4, step, 100)
        assert 0.0 < rate <= 3e-4
        assert rate == pytest.approx(3e-4 * learning_rate(config, 1.0, step, 100))


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_a_run_shorter_than_its_warmup_ends_inside_it(kind: ScheduleKind) -> None:
    config = ScheduleConfig(kind, warmup_steps=100)
    assert learning_rate(config, 1.0, 9, 10) == pytest.approx(0.1)
    assert learning_rate(ScheduleConfig(kind, warmup_steps=0), 1.0, 0, 1) > 0.0


def test_a_stable_run_can_be_prolonged() -> None:
    config = ScheduleConfig(ScheduleKind.wsd, warmup_steps=5, decay_fraction=0.2)
    for step in range(80):
        assert learning_rate(config, 1.0, step, 100) == learning_rate(config, 1.0, step, 200)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"warmup_steps": -1}, "schedule.warmup_steps is -1"),
        ({"final_fraction": 1.5}, "schedule.final_fraction is 1.5"),
        ({"decay_fraction": 0.0}, "schedule.decay_fraction is 0.0"),
    ],
)
def test_an_impossible_schedule_is_refused_by_its_key(values: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        ScheduleConfig(**values)
