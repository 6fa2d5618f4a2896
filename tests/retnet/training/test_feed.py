"""What is placed on a device is what was given, however late it is taken."""

import pytest
import torch

from retnet.training.feed import placing

DEVICES = ["cpu"] + torch.cuda.is_available() * ["cuda"]


@pytest.mark.parametrize("device", DEVICES)
def test_batches_placed_ahead_arrive_whole_and_in_order(device: str) -> None:
    place = placing(torch.device(device))
    given = [[{"ids": torch.randint(999, (64, 2048))} for _ in range(2)] for _ in range(8)]
    taken = [place(batches) for batches in given] if place else [lambda b=b: b for b in given]
    for batches, take in zip(given, taken, strict=True):
        arrived = take()
        products = [batch["ids"] * 2 for batch in arrived]
        assert [batch["ids"].device.type for batch in arrived] == 2 * [device]
        del arrived
        for product, batch in zip(products, batches, strict=True):
            assert torch.equal(product.cpu(), batch["ids"] * 2)


def test_batches_for_the_host_stay_where_they_are() -> None:
    assert placing(torch.device("cpu")) is None
