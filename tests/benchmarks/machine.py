"""The machine that is measured on: its memory, its ceilings, its threads, and its GPU.

Not here: what is measured.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

GIB = 2**30


def available_memory() -> float:
    """Bytes that may still be taken, by the machine's count and the control group's."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


@cache
def ceiling(kind: str, threads: int, quick: bool = False, device: str = "cpu") -> float:
    """The best this machine did of a GEMM 1536^3 in bfloat16 or float32 (FLOP/s), or of a copy of
    256 MB (bytes read and written, per second); on a GPU of 8192^3 and of 2 GB."""
    gpu = device == "cuda"
    if kind == "copy":
        size = 2**20 if quick else 2**31 if gpu else 2**28
        source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
        target = torch.empty_like(source).fill_(0)
        work, run = 2.0 * source.numel(), lambda: target.copy_(source)
    else:
        side = 128 if quick else 8192 if gpu else 1536
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, kind)) for _ in range(2))
        work, run = 2.0 * side**3, lambda: a @ b
    seconds = []
    with use_threads(threads):
        for _ in range(2 if quick else 8):
            await_gpu()
            started = time.perf_counter()
            run()
            await_gpu()
            seconds.append(time.perf_counter() - started)
    return work / min(seconds)


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """What torch.empty and its like give is full of nan."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that know no deterministic algorithm
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warns)


def await_gpu() -> None:
    """Waits for what was launched on a GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def gpu_is_lost() -> bool:
    """Whether a kernel's fault has left this process without its GPU, as an access outside of its
    memory does."""
    try:
        await_gpu()
    except RuntimeError:
        return True
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what failed may have failed for want of memory
    return False
