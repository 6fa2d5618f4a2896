"""Which rank is slow, and on what a run runs: the time of each rank's own work, step by step.

Ranks wait for each other, so every one of them takes the same time for a step. Its forward passes
wait for nobody below ZeRO stage 3, so their time is the rank's own; at stage 3 they wait for the
weights, and a slow rank shows there only by what it adds before others wait for it. It ends
nothing: what stands still is the watchdog's.
"""

from __future__ import annotations

import platform
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

IN_A_ROW = 3  # looks at which the same rank must be slow: one is a hiccup
QUIET = 3600.0  # seconds before the same is told again
EACH = 16  # ranks of which each one's time is logged; of more, the median and the slowest alone


class ForwardClock:
    """The time that this rank's forward passes of one step take: around each of them as a `with`.
    Waits for no device before it is asked."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []  # a beginning and an end for each pass

    def __enter__(self) -> Self:
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Of all passes together; on a GPU it waits for the last of them."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if not self._on_gpu:
            return sum(stop - start for start, stop in pairs)
        for _, stop in pairs:
            stop.synchronize()
        return sum(start.elapsed_time(stop) for start, stop in pairs) / 1000.0


class Straggler(NamedTuple):
    """A rank that the others wait for."""

    rank: int
    host: str
    factor: float
    """Its time over the median of the others'."""


class RankTimes:
    """The times of all ranks since the last look, which every rank knows alike."""

    def __init__(self, factor: float, now: Callable[[], float] = time.monotonic) -> None:
        """`factor`: times the median of the others from which on a rank is slow."""
        self._factor = factor
        self._now = now
        self._steps: list[tuple[float, ...]] = []
        self._slow: tuple[int, int] = (-1, 0)  # a rank, and how often in a row
        self._told = -QUIET
        self._hosts: list[str] | None = None

    def add(self, seconds: tuple[float, ...]) -> None:
        """The times of one step, by rank."""
        if len(seconds) > 1:
            self._steps.append(seconds)

    def look(self) -> tuple[dict[str, float], Straggler | None]:
        """What to log of the steps since the last look, {} where there is one rank or no step, and
        who is to be told of. Collective at its first call with several ranks."""
        if not self._steps:
            return {}, None
        # The median over the steps: one that waited for its data or a disk does not make it slow.
        times = [statistics.median(steps) for steps in zip(*self._steps, strict=True)]
        self._steps.clear()
        if self._hosts is None:
            self._hosts = [""] * len(times)
            dist.all_gather_object(self._hosts, socket.gethostname())
        rank = max(range(len(times)), key=times.__getitem__)
        others = statistics.median(times[:rank] + times[rank + 1 :])
        factor = times[rank] / max(others, 1e-9)
        before, count = self._slow
        if factor <= self._factor:
            self._slow = -1, 0
        else:
            self._slow = rank, count + 1 if rank == before else 1
        found = None
        if self._slow[1] >= IN_A_ROW and self._now() - self._told >= QUIET:
            self._told = self._now()
            found = Straggler(rank, self._hosts[rank], factor)
        named = {"median": statistics.median(times), "slowest": times[rank], "slowest_rank": rank}
        if len(times) <= EACH:
            named |= {f"rank_{number:02d}": seconds for number, seconds in enumerate(times)}
        return {f"step_time/{name}": value for name, value in named.items()}, found


def environment(world_size: int, device: torch.device) -> dict[str, str]:
    """What a run runs on, in words, without the name of any machine."""
    import deepspeed

    on = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    return {
        "python": platform.python_version(),
        "torch": f"{torch.__version__}{cuda}",
        "deepspeed": deepspeed.__version__,
        "device": on,
        "ranks": str(world_size),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.processor()}, {len(names)} cores"
