"""How something is measured here: cases, comparisons, contenders, and one way to time them.

Contenders take turns, A B A B, in one process on the same fresh random inputs, after a warm-up turn
whose outputs are checked against float64. What counts is the ratio of medians and of minima: an
absolute time says more about the machine's other guests. Not here: what is measured, and printing.
"""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.benchmarks.goals import Goal, Verdict, judge_goals
from tests.benchmarks.machine import (
    GIB,
    available_memory,
    await_gpu,
    ceiling,
    fresh_memory_is_nan,
    gpu_is_lost,
)
from tests.benchmarks.roofline import Work, floor

if TYPE_CHECKING:
    from tests.benchmarks.peers import Peer

PAIRS = 5
"Turns of each contender, at least."
MOST_PAIRS, PATIENCE = 25, 2.0
"Quick contenders get more turns: up to so many, or until all turns together took so many seconds."
TIMES = ("ms", "ms alone")
"Units of time; what `run` returns in another, or in ms alone, is the figure."
SLACK, WIDE_SLACK = 2.0, 10.0
"So many times the standard's error is wrong, of ours and of others."


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    quick: bool = False
    "Toy sizes and one turn: proves that a case runs, measures nothing."
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
    """Does the work once on the drawn inputs and returns outputs to check; where the comparison's
    unit is not ms, the figure."""
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
    phases: tuple[Work, ...] = ()
    "What one part needs at least, one phase after the other: figures are also of that floor."
    remark: Callable[[], str] | None = None
    "A word after the figures, asked for when they are there."


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
    "ms; else (ms alone, MiB, error) what `run` returns is the figure."
    device: str = "cpu"
    "Where the ceiling is measured: cpu or cuda."
    standard: str | None = None
    "The contender whose error is a measure of the others': see SLACK. A wrong one has no ratio."
    poisoned: bool = False
    "The warm-up's fresh memory is filled with nan, so that an element never written is an error."
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Case:
    """Comparisons that belong together, by the name they are picked by."""

    name: str
    title: str
    build: Callable[[Settings], Iterable[Comparison]]
    "A generator: each comparison is measured and dropped before the next is built."
    threads: int = 1
    minutes: float = 1.0
    "How long it may take; with too little time left it does not begin."
    by_name: bool = False
    "Only where it is asked for by its name."


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
    wrong: bool = False
    "Too far from float64: a figure of it says nothing."
    floor: float | None = None
    "What the figure could be at least, by the ceilings."
    tflops: float | None = None
    gigabytes: float | None = None
    "A second, of what `phases` counts."
    remark: str = ""

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass
class Result:
    """A measured comparison: rows, a sentence for each contender that was left out or failed, what
    came of its goals, and whether one of ours failed or is wrong."""

    title: str
    unit: str
    rows: list[Row]
    left_out: list[str]
    verdicts: list[Verdict] = field(default_factory=list)
    broken: bool = False


def measure(comparison: Comparison, settings: Settings) -> Result:
    """Checks, times and compares; under the number of threads that is set."""
    torch.manual_seed(0)
    contenders, left_out = fitting(comparison.contenders)
    rows, failed = take_turns(comparison, contenders, settings)
    mark_wrong(comparison, rows)
    bases = [row for row in rows if row.base and not row.wrong]
    best = min(bases, key=lambda row: row.median) if bases else None
    for row in rows:
        if comparison.unit in TIMES:
            set_shares(row, contenders[row.name], comparison, settings.quick)
        if best and best.median:
            row.ratio_of_medians = row.median / best.median
            row.ratio_of_minima = min(row.values) / min(best.values)
    broken = any(row.wrong and row.base for row in rows)
    broken |= any(contenders[name].base for name in failed)
    verdicts = judge_goals(comparison.goals, rows, comparison.unit)
    sentences = [*left_out, *failed.values()]
    return Result(comparison.title, comparison.unit, rows, sentences, verdicts, broken)


def set_shares(row: Row, contender: Contender, comparison: Comparison, quick: bool) -> None:
    """How its figure stands to the ceilings that were measured."""
    threads, seconds = torch.get_num_threads(), row.median * 1e-3
    if contender.work and comparison.ceiling:
        best = ceiling(comparison.ceiling, threads, quick, comparison.device)
        row.share = contender.work / seconds / best
    if contender.phases:
        kind = "bfloat16" if comparison.ceiling in (None, "copy") else comparison.ceiling
        rates = [ceiling(name, threads, quick, comparison.device) for name in (kind, "copy")]
        row.floor = 1e3 * floor(contender.phases, *rates)
        row.tflops = sum(phase.flops for phase in contender.phases) / seconds / 1e12
        row.gigabytes = sum(phase.bytes for phase in contender.phases) / seconds / 1e9


def mark_wrong(comparison: Comparison, rows: list[Row]) -> None:
    """Which rows are too far from float64, by the standard's error."""
    errors = {
        row.name: row.median if comparison.unit == "error" else row.error
        for row in rows
        if comparison.unit == "error" or row.error is not None
    }
    standard = errors.get(comparison.standard)
    for row in rows:
        if standard is not None and row.name in errors:
            slack = SLACK if row.base else WIDE_SLACK
            row.wrong = not errors[row.name] <= slack * standard


def take_turns(
    comparison: Comparison, contenders: dict[str, Contender], settings: Settings
) -> tuple[list[Row], dict[str, str]]:
    """A warm-up turn, whose outputs are checked, then A B A B. Who fails in the warm-up takes no
    more turns: the second result is a sentence for each."""
    rows, failed = [], {}
    inputs = comparison.draw()
    for name, contender in contenders.items():
        row = Row(name, contender.base, None, [])
        try:
            warm_up(row, contender, comparison, inputs)
        except Exception as error:
            if contender.base:
                traceback.print_exc(file=sys.stderr)
            if gpu_is_lost():  # nobody else can go on in this process
                raise
            failed[name] = f"{name} failed: {sentence_of(error)}"
        else:
            rows.append(row)
    del inputs
    if comparison.unit == "ms":
        started, turns = time.perf_counter(), 0
        while turns < (1 if settings.quick else PAIRS) or (
            not settings.quick and turns < MOST_PAIRS and time.perf_counter() - started < PATIENCE
        ):
            drawn = comparison.draw()
            for row in rows:
                contender = contenders[row.name]
                seconds, outputs = take_turn(contender, drawn)
                row.values.append(1e3 * seconds / contender.parts)
                del outputs
            turns += 1
    for row in rows:
        remark = contenders[row.name].remark
        row.remark = remark() if remark else ""
    return rows, failed


def warm_up(row: Row, contender: Contender, comparison: Comparison, inputs: tuple) -> None:
    """The first turn: its outputs' error or, where `run` returns that, the figure."""
    with fresh_memory_is_nan() if comparison.poisoned else nullcontext():
        _, outputs = take_turn(contender, inputs)
    if comparison.unit != "ms":  # the same every time: one is enough
        row.values.append(outputs)
    elif contender.check:
        row.error = contender.check(inputs, outputs)


def sentence_of(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'without a word'}"


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


def relative_error(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest |found - truth| / |truth| (L2) over pairs of tensors; nan counts as infinite."""
    errors = [
        ((a.double() - b.double()).norm() / b.double().norm()).nan_to_num(nan=torch.inf).item()
        for a, b in zip(found, truth, strict=True)
    ]
    return max(errors)
