"""How fast a run goes and what it takes: tokens by the clock, MFU, waiting for data, peak memory.

It measures one process and knows no other; the caller hands in how ranks find their worst value. It
writes nothing: that is metrics.py.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import TypeVar

import torch

T = TypeVar("T")


class Speed:
    """Tokens per second, MFU, the share of time without data and the memory between two looks."""

    def __init__(
        self,
        *,
        flops_per_token: float,
        peak_flops: float | None,
        world_size: int,
        device: torch.device,
    ) -> None:
        """`flops_per_token` of forward and backward; `peak_flops` of one device, None: unknown."""
        self._flops_per_token = flops_per_token
        self._peak = None if peak_flops is None else peak_flops * world_size
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Looks at the clock anew: leaves out what came before (an evaluation, a save)."""
        self._since, self._tokens, self._waited = time.perf_counter(), 0, 0.0

    def add(self, tokens: int) -> None:
        """Counts tokens that all ranks together have processed."""
        self._tokens += tokens

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def measure(self, worst: Callable[[dict[str, float]], dict[str, float]]) -> dict[str, float]:
        """What was measured since the last look, the memory since the last `measure`; {} where no
        token was counted. `worst` gives the largest of each value over all ranks; collective where
        that is.

        tokens_per_second: of all ranks together.
        mfu: 0 to 1, where the peak is known.
        data_wait: 0 to 1, the share of the time that the loop waited for its next batch.
        peak_memory: bytes; see `peak_memory`.
        """
        if not self._tokens:
            return {}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._tokens / seconds
        result = {"tokens_per_second": rate}
        if self._peak is not None:
            result["mfu"] = rate * self._flops_per_token / self._peak
        own = {"data_wait": self._waited / seconds, "peak_memory": peak_memory(self._device)}
        result |= worst(own)
        result["peak_memory"] = int(result["peak_memory"])
        self.restart()
        return result


def peak_memory(device: torch.device) -> float:
    """Bytes. Of a GPU: the most that tensors held since the last call. Of a CPU: the most that this
    process held resident since it began, its data workers not counted (Linux's VmHWM)."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks = (1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    # Some sandboxes leave the line out; this begins with the process that started this one.
    return next(peaks, 1024.0 * getrusage(RUSAGE_SELF).ru_maxrss)
