"""Order by arithmetic: permutations and the held-out split as pure functions of integers and text.

This is not a shuffling buffer and holds no state: the same numbers give the same order in every
process, on every machine and with every version of numpy.
"""

import hashlib

import numpy as np


def permutation(count: int, *key: int) -> np.ndarray:
    """The seeded order of `count` things: int64 [count], a permutation of 0 .. count - 1.

    `key` is the address of this permutation, e.g. (seed, epoch). It is hashed, since numpy's
    SeedSequence takes (1, 2) and (1, 2, 0) for the same. Raw Philox words are sorted instead of
    calling numpy's own shuffle, because numpy promises that raw words never change between versions
    and promises no such thing for `Generator.permutation`.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(words, kind="stable")


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: its content alone decides.

    Twice the same text falls on the same side, whatever its name, place or epoch.
    `fraction` is the expected share of held-out documents, 0 for none.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
