"""Trying again keeps its budget, asks no more than it was told to, and says what it gave up on."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.retry import LONGEST_JITTER, retry
from data.stores import StoreError

few = settings(max_examples=40, deadline=None, derandomize=True)


class Clock:
    """Time that passes only by sleeping, and calls that fail until they do not."""

    def __init__(self, *errors: StoreError, draw: float = 0.5) -> None:
        self.now, self.waits, self.errors, self.draw = 0.0, [], list(errors), draw
        self.calls = 0

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def call(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "bytes"

    def retry(self, budget: float, spent: float = 0.0) -> str:
        return retry(
            self.call,
            "shard-7 of s3://b",
            budget=budget,
            spent=spent,
            clock=lambda: self.now,
            sleep=self.sleep,
            rng=lambda: self.draw,
        )


def busy(retry_after: float | None = None) -> StoreError:
    return StoreError("429 Too Many Requests", status=429, retry_after=retry_after)


def test_what_passes_is_tried_until_it_succeeds():
    clock = Clock(busy(), busy(), busy())
    assert clock.retry(budget=100) == "bytes"
    assert clock.calls == 4 and len(clock.waits) == 3


@few
@given(st.lists(st.none() | st.floats(0, 50), min_size=1, max_size=20), st.floats(0, 1))
def test_a_wait_is_what_the_server_asked_for_and_jitter_that_grows_to_a_minute(asked, draw):
    clock = Clock(*map(busy, asked), draw=draw)
    clock.retry(budget=1e9)
    for number, (wait, least) in enumerate(zip(clock.waits, asked, strict=True)):
        assert wait == pytest.approx((least or 0) + draw * min(LONGEST_JITTER, 2**number))


@few
@given(st.floats(0, 500), st.floats(0, 600), st.floats(0, 1), st.floats(0, 90))
def test_no_wait_ends_beyond_what_is_left_of_the_budget(budget, spent, draw, asked):
    clock = Clock(*(busy(asked) for _ in range(2000)), draw=max(draw, 0.01))
    with pytest.raises(StoreError):
        clock.retry(budget, spent)
    assert clock.now <= max(0, budget - spent)
    assert clock.calls == len(clock.waits) + 1  # at least one, whatever the budget


def test_what_is_given_up_is_said_with_the_budget_the_cause_and_the_attempts():
    clock = Clock(*(busy(40) for _ in range(99)))
    with pytest.raises(StoreError) as caught:
        clock.retry(budget=100)
    assert str(caught.value) == (
        "shard-7 of s3://b could not be read within data.retry_seconds=100: 429 Too Many "
        "Requests, 3 attempts"
    )
    assert caught.value.status == 429 and not caught.value.permanent


def test_what_is_permanent_is_not_tried_again():
    clock = Clock(StoreError("is not there (404)", status=404, permanent=True))
    with pytest.raises(StoreError, match=r"^shard-7 of s3://b is not there \(404\)$") as caught:
        clock.retry(budget=100)
    assert clock.calls == 1 and caught.value.permanent and caught.value.status == 404


def test_every_repetition_is_said_in_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        Clock(busy(3), StoreError("the body ended early")).retry(budget=100)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "shard-7 of s3://b: 429 Too Many Requests; trying again in 3.5 s",
        "shard-7 of s3://b: the body ended early; trying again in 1.0 s",
    ]


def test_another_error_is_not_touched():
    def call() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        retry(call, "shard", budget=100, sleep=lambda _: pytest.fail("it waited"))
