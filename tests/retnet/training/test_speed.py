"""What a run says about its speed, its waiting and its memory is so."""

import gc
import itertools
import time

import numpy as np
import pytest
import torch

from retnet.training.speed import Speed, peak_memory

DEVICES = ["cpu"] + torch.cuda.is_available() * ["cuda"]
SIZE = 256 * 2**20


def hold(device: str, size: int) -> np.ndarray | torch.Tensor:
    """`size` bytes that are there, not only promised."""
    if device == "cpu":
        return np.ones(size, np.uint8)
    return torch.ones(size, dtype=torch.uint8, device=device)


def alone(values: dict[str, float]) -> dict[str, float]:
    """The worst of one process."""
    return values


def start(peak_flops: float | None = None) -> Speed:
    device = torch.device("cpu")
    return Speed(flops_per_token=10.0, peak_flops=peak_flops, world_size=2, device=device)


def test_speed_counts_tokens_by_the_clock_and_knows_no_mfu_without_a_peak() -> None:
    known = start(peak_flops=1000.0)
    known.add(20)
    known.restart()  # forgets both the tokens and the time before
    assert known.measure(alone) == {}
    known.add(50)
    measured = known.measure(alone)
    assert measured["mfu"] == pytest.approx(measured["tokens_per_second"] * 10.0 / 2000.0)
    unknown = start()
    unknown.add(50)
    assert set(unknown.measure(alone)) == {"tokens_per_second", "data_wait", "peak_memory"}


def test_the_share_of_waiting_is_of_the_time_since_the_last_look() -> None:
    speed = start()
    batches = speed.watch(time.sleep(0.03) or number for number in itertools.count())
    shares = []
    for work in (0.0, 0.2):
        for _ in range(4):
            next(batches)
            time.sleep(work)
            speed.add(1)
        shares.append(speed.measure(alone)["data_wait"])
    assert 1.0 >= shares[0] > 0.5 > shares[1] > 0.0
    next(batches)
    speed.restart()  # after an evaluation: that wait is of what came before
    speed.add(1)
    time.sleep(0.01)
    assert speed.measure(alone)["data_wait"] == 0.0


def test_watched_batches_are_all_there_in_order_and_end() -> None:
    assert list(start().watch(iter(range(5)))) == [0, 1, 2, 3, 4]


def test_what_the_worst_rank_says_is_what_is_measured() -> None:
    speed = start()
    speed.add(1)
    measured = speed.measure(lambda values: {key: value + 1.0 for key, value in values.items()})
    assert 1.0 <= measured["data_wait"] <= 2.0


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_grows_by_what_was_held_for_a_moment(device: str) -> None:
    gc.collect()  # so that nothing is given back in between
    before = peak_memory(torch.device(device))
    held = []
    if device == "cpu":  # an earlier test may have held more: only beyond that does a peak show
        while peak_memory(torch.device(device)) == before:
            held.append(hold(device, SIZE // 8))
        before = peak_memory(torch.device(device))
    hold(device, SIZE)
    grown = peak_memory(torch.device(device)) - before
    assert 0.9 * SIZE < grown < 1.1 * SIZE
