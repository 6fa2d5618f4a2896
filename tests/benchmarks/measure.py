"""How something is measured here: cases, comparisons, contenders, and one way to time them.

Contenders take turns, A B A B, in one process on the same fresh random inputs, after a warm-up turn
whose outputs are checked against float64. What counts is the ratio of medians and of minima: an
absolute time says more about the machine's other guests. Not here: what is measured, and printing.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.benchmarks.peers import Peer

GIB = 2**30
PAIRS = 5
"Turns of each contender, at least."
MOST_PAIRS, PATIENCE = 25, 2.0
"Quick contenders get more turns: up to so many, or until all turns together took so many seconds."


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    quick: bool = False
    "Toy sizes and two turns: proves that a case runs, measures nothing."
    threads: int | None = None
    "Threads for every case; None: each case's own."
    peers: dict[str, "Peer"] = field(default_factory=dict)
    "Checkouts of other RetNets by name, as `peers.open_peers` gives them."

    def size(self, real: int, toy: int) -> int:
        """The size to use."""
        return toy if self.quick else real


@dataclass
class Contender:
    """One way to do a comparison's work."""

    run: Callable[..., Any]
    "Does the work once on the drawn inputs and returns outputs to check; in MiB, the figure."
    base: bool = False
    "Ratios are to the fastest of these."
    check: Callable[[tuple, Any], float] | None = None
    "Relative error against float64, from the inputs and outputs of the warm-up turn."
    prepare: Callable[..., None] | None = None
    "What comes before each turn and is not timed; takes the same inputs."
    parts: int = 1
    "How many equal parts `run` does; figures are for one."
    work: float | None = None
    "FLOPs (bytes, where the ceiling is the copy) of one part, where they are known."
    memory: float = 0.0
    "Bytes a turn takes at its peak, roughly; 0: little."


@dataclass
class Comparison:
    """Contenders for one piece of work."""

    title: str
    contenders: dict[str, Contender]
    draw: Callable[[], tuple] = tuple
    "Fresh random inputs for a turn of everybody."
    ceiling: str | None = None
    "What `work` is measured by: bfloat16, float32 (GEMM) or copy."
    unit: str = "ms"
    "ms, or MiB for what `run` returns."
    device: str = "cpu"
    "Where the ceiling is measured: cpu or cuda."


@dataclass(frozen=True)
class Case:
    """Comparisons that belong together, by the name they are picked by."""

    name: str
    title: str
    build: Callable[[Settings], Iterable[Comparison]]
    "A generator: each comparison is measured and dropped before the next is built."
    threads: int = 1


@dataclass
class Row:
    """What was measured of one contender."""

    name: str
    base: bool
    error: float | None
    values: list[float]
    share: float | None = None
    "Of the ceiling, at the median."
    ratio_of_medians: float = 1.0
    "To the best base: above 1 the base is faster."
    ratio_of_minima: float = 1.0

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass
class Result:
    """A measured comparison: rows, and a sentence for each contender that was left out."""

    title: str
    unit: str
    rows: list[Row]
    left_out: list[str]


def measure(comparison: Comparison, settings: Settings) -> Result:
    """Checks, times and compares; under the number of threads that is set."""
    torch.manual_seed(0)
    contenders, left_out = fitting(comparison.contenders)
    rows = take_turns(comparison, contenders, settings)
    bases = [row for row in rows if row.base]
    best = min(bases, key=lambda row: row.median) if bases else None
    for row in rows:
        work = contenders[row.name].work
        if work and comparison.ceiling and comparison.unit == "ms":
            share = work / (row.median * 1e-3)
            threads = torch.get_num_threads()
            best_rate = ceiling(comparison.ceiling, threads, settings.quick, comparison.device)
            row.share = share / best_rate
        if best:
            row.ratio_of_medians = row.median / best.median
            row.ratio_of_minima = min(row.values) / min(best.values)
    return Result(comparison.title, comparison.unit, rows, left_out)


def take_turns(
    comparison: Comparison, contenders: dict[str, Contender], settings: Settings
) -> list[Row]:
    """A warm-up turn, whose outputs are checked, then A B A B."""
    rows = [Row(name, contender.base, None, []) for name, contender in contenders.items()]
    if comparison.unit == "MiB":  # the same every time, and each turn a process: one is enough
        for row in rows:
            row.values.append(contenders[row.name].run(*comparison.draw()))
        return rows
    inputs = comparison.draw()
    for row in rows:
        contender = contenders[row.name]
        _, outputs = take_turn(contender, inputs)
        row.error = contender.check(inputs, outputs) if contender.check else None
        del outputs
    started, turns = time.perf_counter(), 0
    while turns < (2 if settings.quick else PAIRS) or (
        not settings.quick and turns < MOST_PAIRS and time.perf_counter() - started < PATIENCE
    ):
        inputs = comparison.draw()
        for row in rows:
            contender = contenders[row.name]
            seconds, outputs = take_turn(contender, inputs)
            row.values.append(1e3 * seconds / contender.parts)
            del outputs
        turns += 1
    return rows


def take_turn(contender: Contender, inputs: tuple) -> tuple[float, Any]:
    """Seconds of one run, and its outputs."""
    if contender.prepare:
        contender.prepare(*inputs)
    gc.collect()
    await_gpu()
    started = time.perf_counter()
    outputs = contender.run(*inputs)
    await_gpu()
    return time.perf_counter() - started, outputs


def await_gpu() -> None:
    """Waits for what was launched on a GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def fitting(contenders: dict[str, Contender]) -> tuple[dict[str, Contender], list[str]]:
    """Those that fit into this machine's memory, and a sentence for each that does not."""
    free = available_memory()
    left_out = [
        f"{name} left out: it needs about {contender.memory / GIB:.0f} GiB and "
        f"{free / GIB:.0f} GiB are free"
        for name, contender in contenders.items()
        if contender.memory > free
    ]
    return {n: c for n, c in contenders.items() if c.memory <= free}, left_out


def available_memory() -> float:
    """Bytes that may still be taken, by the machine's count and the control group's."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest |found - truth| / |truth| (L2) over pairs of tensors; nan counts as infinite."""
    errors = [
        ((a.double() - b.double()).norm() / b.double().norm()).nan_to_num(nan=torch.inf).item()
        for a, b in zip(found, truth, strict=True)
    ]
    return max(errors)


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
    with use_threads(threads):
        seconds = [take_turn(Contender(run), ())[0] for _ in range(2 if quick else 8)]
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
