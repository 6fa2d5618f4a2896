"""Order by arithmetic: permutations and the held-out split as pure functions of integers and text.

This is not a shuffling buffer and holds no state: the same numbers give the same order in every
process, on every machine and with every version of numpy.
"""

import hashlib

import numpy as np


def permutation(count: int, *key: int) -> np.ndarray:
    """The seeded order of `count` things: int64 [count], a permutation of 0 .. count - 1.

    `key` is the address of this permutation, e.g. (seed, epoch): non-negative integers.
    Raw Philox words are sorted instead of calling numpy's own shuffle, because numpy promises that
    raw words never change between versions and promises no such thing for `Generator.permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence(list(key))).random_raw(count)
    return np.argsort(np.atleast_1d(words), kind="stable")


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: its content alone decides.

    Twice the same text falls on the same side, whatever its name, place or epoch.
    `fraction` is the expected share of held-out documents, 0 for none.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
