"""Time and money from arithmetic, and how they are said."""

import pytest

from retnet.plan.cost import bytes_in_words, cost_of, count_in_words, in_words


def test_a_run_costs_what_its_devices_do_in_its_time():
    """8 devices of 1 TFLOP/s at a half do 4e12 a second: 100 steps of 4e13 take 1000 s."""
    cost = cost_of(4e13, 100, devices=8, peak=1e12, mfu=0.5, price=3.6)
    assert cost.step_seconds == 10.0 and cost.seconds == 1000.0
    assert cost.money == pytest.approx(8 * 1000 / 3600 * 3.6)


def test_what_is_not_known_is_not_said():
    assert cost_of(1e12, 5, devices=1, peak=None, mfu=0.4, price=2.0) == (None, None, None)
    assert cost_of(1e12, 5, devices=1, peak=1e12, mfu=0.4, price=0.0).money is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0214, "21.4 ms"),
        (12.345, "12.3 s"),
        (172.4, "2 min 52 s"),
        (599.6, "10 min"),
        (59 * 60, "59 min"),
        (3600, "1 h 0 min"),
        (3 * 86400 + 7200, "3 days 2 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, words):
    assert in_words(seconds) == words


def test_sizes_have_decimal_units():
    assert bytes_in_words(81.3e9) == "81.3 GB" and bytes_in_words(1234e12) == "1234 TB"
    assert count_in_words(3_362_688) == "3.36 million" and count_in_words(999) == "999"
