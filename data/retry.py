"""Trying again: how often, how long apart, and what is said when it was in vain.

Only here are reads of a store repeated; the libraries' own repetitions are switched off, so that
data.retry_seconds means what it says. What can go wrong is data/stores.py's.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from data.stores import StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds. However often it failed, the jitter is drawn from no more than this.
LONGEST_JITTER = 60.0
# Not the `random` module's own generator: ranks seed that alike, and would all come at once.
_unseeded = random.SystemRandom().random


def retry(
    call: Callable[[], T],
    what: str,
    *,
    budget: float,
    spent: float = 0.0,
    failed: str = "could not be read within data.retry_seconds",
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    rng: Callable[[], float] = _unseeded,
) -> T:
    """What `call` returns, called again after each passing StoreError for `budget` seconds, of
    which `spent` are gone already.

    Before the n-th repetition it waits as long as the server asked by Retry-After and, on top, a
    random part of min(60, 2^(n-1)) seconds (full jitter). When the next wait would end beyond the
    budget, or the error is permanent, it raises a StoreError whose words are a whole sentence about
    `what`, e.g. "shard-00000012.bin of s3://bucket/web"; `failed` ends with the budget's key.
    """
    end = clock() + budget - spent
    for attempt in itertools.count(1):
        try:
            return call()
        except StoreError as error:
            wait = (error.retry_after or 0.0) + rng() * min(LONGEST_JITTER, 2.0 ** (attempt - 1))
            if error.permanent:
                words = f"{what} {error}"
            elif clock() + wait > end:
                words = (
                    f"{what} {failed}={budget:g}: {error}, {attempt} attempt{'s' * (attempt > 1)}"
                )
            else:
                log.warning("%s: %s; trying again in %.1f s", what, error, wait)
                sleep(wait)
                continue
            raise StoreError(words, status=error.status, permanent=error.permanent) from error
    raise AssertionError("unreachable")
