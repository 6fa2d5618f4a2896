"""Order is a pure function: permutations are complete, repeatable and different by address."""

import numpy as np

from data.order import is_held_out, permutation


def test_a_permutation_has_every_index_once() -> None:
    for count in (0, 1, 2, 7, 1000):
        assert np.array_equal(np.sort(permutation(count, 3, 4)), np.arange(count))


def test_the_same_address_gives_the_same_order_and_another_one_another() -> None:
    addresses = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (2**40, 0), (0, 0, 1)]
    orders = {tuple(permutation(50, *address)) for address in addresses}
    assert len(orders) == len(addresses)
    assert all(tuple(permutation(50, *address)) in orders for address in addresses)


def test_the_order_is_the_one_of_earlier_releases() -> None:
    """A change here would break the resume of every run that exists."""
    assert permutation(8, 17, 2).tolist() == [5, 0, 4, 2, 6, 1, 3, 7]


def test_about_the_wanted_fraction_is_held_out() -> None:
    texts = [f"document {i}" for i in range(10_000)]
    assert 150 < sum(is_held_out(text, 0.02) for text in texts) < 250
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert all(is_held_out(text, 1.0) for text in texts)
