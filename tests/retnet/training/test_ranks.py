"""The rank that the others wait for is named, and a hiccup is not."""

import time
from pathlib import Path

import torch

from retnet.training.ranks import ForwardClock, RankTimes, environment
from tests.retnet.training.processes import run


def test_a_slow_rank_of_two_is_named_with_its_host(tmp_path: Path) -> None:
    """Real engines: the second rank's forward pass sleeps, and the other waits for it."""
    for found in run("slow_rank", 2, tmp_path, module="workers_steps"):
        assert all(values["step_time/slowest_rank"] == 1 for values in found["values"])
        assert all(values["step_time/slowest"] >= 0.1 for values in found["values"])
        events = [event for event in found["events"] if event["event"] == "straggler"]
        assert [(event["rank"], event["step"]) for event in events] == [(1, 3)]
        assert events[0]["host"] and events[0]["factor"] > 1.25
        assert found["said"].count("is slow") == 1


def _named(looks: list[list[float]], now: list[float] | None = None) -> list[int | None]:
    """Who is told of at each look, of the seconds by rank; the hosts are known."""
    clock = iter(now) if now else None
    times = RankTimes(1.25, (lambda: next(clock)) if clock else time.monotonic)
    times._hosts = ["one", "two", "three"]
    found = []
    for seconds in looks:
        times.add(tuple(seconds))
        slow = times.look()[1]
        found.append(slow and slow.rank)
    return found


def test_one_must_be_slow_three_times_in_a_row() -> None:
    slow, well, other = [1.0, 1.0, 1.3], [1.0, 1.0, 1.2], [1.0, 1.4, 1.0]
    assert _named([slow, slow, slow, slow]) == [None, None, 2, None]
    assert _named([slow, slow, well, slow, slow, slow]) == [None] * 5 + [2]
    assert _named([slow, slow, other, slow, slow]) == [None] * 5


def test_it_is_told_again_after_an_hour() -> None:
    now = [0.0, 0.0, 1800.0, 3599.0, 3600.0, 3600.0]  # asked twice where it is told
    assert _named([[1.0, 1.0, 2.0]] * 6, now) == [None, None, 2, None, None, 2]


def test_a_step_that_took_long_once_makes_no_rank_slow() -> None:
    times = RankTimes(1.25)
    times._hosts = ["one", "two"]
    for seconds in (1.0, 30.0, 1.0):
        times.add((1.0, seconds))
    expected = {"median": 1.0, "slowest": 1.0, "slowest_rank": 0, "rank_00": 1.0, "rank_01": 1.0}
    assert times.look() == ({f"step_time/{name}": value for name, value in expected.items()}, None)
    assert times.look() == ({}, None)


def test_of_many_ranks_the_slowest_alone_is_logged() -> None:
    times = RankTimes(1.25)
    times._hosts = [""] * 32
    times.add(tuple(1.0 + rank / 100 for rank in range(32)))
    values, _ = times.look()
    assert set(values) == {"step_time/median", "step_time/slowest", "step_time/slowest_rank"}
    assert values["step_time/slowest_rank"] == 31


def test_one_rank_is_not_compared_with_itself() -> None:
    times = RankTimes(1.25)
    times.add((1.0,))
    assert times.look() == ({}, None)


def test_the_clock_adds_up_what_was_within_it() -> None:
    clock, began = ForwardClock(torch.device("cpu")), time.perf_counter()
    for _ in range(2):
        with clock:
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.04 <= clock.seconds() <= time.perf_counter() - began - 0.1


def test_what_a_run_runs_on_is_said_in_words_without_its_host() -> None:
    words = environment(2, torch.device("cpu"))
    assert set(words) == {"python", "torch", "deepspeed", "device", "ranks", "system"}
    assert words["torch"] == torch.__version__ and words["ranks"] == "2"
    assert words["device"].startswith("CPU, ") and all(isinstance(w, str) for w in words.values())
