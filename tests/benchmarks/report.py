"""What was measured as text and as JSON: the head that says on what, a table for each case, and
what came of the goals."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.machine import GIB, available_memory, ceiling
from tests.benchmarks.measure import TIMES, Case, Result, Settings

HEADINGS = ("error", "median", "minimum", "medians", "minima", "ceiling")
EXPLANATION = (
    "error: largest relative L2 error of outputs (and gradients) against float64 (c6 and c7: of "
    "logits; c8: of the update).\nmedians, minima: times as long as ours, which has a star (the "
    "best of several, by its median).\nceiling: share of the measured ceiling, counting the FLOPs "
    "of the definition, whatever form spends more."
)
FLOOR_HEADINGS = ("of floor", "TFLOP/s", "GB/s")
FLOOR_EXPLANATION = (
    "of floor: what the FLOPs and bytes that cannot be done without would take at the measured "
    "ceilings, as a\nshare of the median; TFLOP/s and GB/s count those alone. wrong: more than "
    "twice plain torch's error, of others ten times."
)
PACKAGES = ("torch", "triton", "transformers", "deepspeed", "fla-core", "mlstm-kernels")


def head(settings: Settings, threads: list[int], gpu: bool) -> dict[str, Any]:
    """Where and when: everything a figure needs beside it. Measures the ceilings (C0), on a GPU
    where there are cases of one among those to come."""
    capabilities = torch.cpu.get_capabilities()
    bfloat16 = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
        "quick": settings.quick,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "bfloat16": bfloat16,
        "free_gib": round(available_memory() / GIB, 1),
        "versions": {name: number for name in PACKAGES if (number := installed(name))},
        "ceilings": {
            str(count): {
                kind: ceiling(kind, count, settings.quick)
                for kind in ("bfloat16", "float32", "copy")
            }
            for count in threads
        },
        "gpu": describe_gpu(settings) if gpu and torch.cuda.is_available() else None,
    }


def installed(name: str) -> str | None:
    """A package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_gpu(settings: Settings) -> dict[str, Any]:
    """The GPU and its ceilings."""
    of_device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": of_device.name,
        "capability": f"{of_device.major}.{of_device.minor}",
        "multiprocessors": of_device.multi_processor_count,
        "gib": round(of_device.total_memory / GIB, 1),
        "runtime": torch.version.cuda or torch.version.hip,
        "ceilings": {
            kind: ceiling(kind, 1, settings.quick, "cuda") for kind in ("bfloat16", "copy")
        },
    }


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def head_text(facts: dict[str, Any]) -> str:
    """The head of the table."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    quick = "TOY SIZES: these figures mean nothing\n" if facts["quick"] else ""
    ceilings = "\n".join(
        f"c0: {threads} thread{'s' * (int(threads) > 1)}: GEMM 1536^3 bfloat16 "
        f"{kinds['bfloat16'] / 1e12:.3f}, float32 {kinds['float32'] / 1e12:.3f} TFLOP/s; copy of "
        f"256 MB {kinds['copy'] / 1e9:.1f} GB/s"
        for threads, kinds in facts["ceilings"].items()
    )
    gpu = facts["gpu"]
    on_gpu = gpu and (
        f"g0: {gpu['name']} ({gpu['capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"{gpu['gib']} GiB, runtime {gpu['runtime']}): GEMM 8192^3 bfloat16 "
        f"{gpu['ceilings']['bfloat16'] / 1e12:.0f} TFLOP/s; copy of 2 GB "
        f"{gpu['ceilings']['copy'] / 1e9:.0f} GB/s\n"
    )
    return (
        f"{quick}{facts['date']}   {facts['command']}\n{facts['cores']} cores of {facts['cpu']}, "
        f"bfloat16 by {' and '.join(facts['bfloat16']) or 'no instruction'}, "
        f"{facts['free_gib']} GiB free, load {facts['load']:.1f}\n{versions}\n{ceilings}\n"
        f"{on_gpu or ''}{EXPLANATION}\n{FLOOR_EXPLANATION}\n"
    )


def case_title(case: Case, threads: int) -> str:
    """The line above a case's tables."""
    return f"\n{case.name}: {case.title}, {threads} thread{'s' * (threads > 1)}\n"


def table(result: Result) -> str:
    """One comparison as text."""
    width = max((len(row.name) for row in result.rows), default=0) + 4
    floors = any(row.floor for row in result.rows)
    headings = HEADINGS + FLOOR_HEADINGS * floors
    lines = [f"  {result.title} ({result.unit})"]
    lines.append(" " * width + "".join(f"{heading:>11}" for heading in headings))
    right = [row for row in result.rows if row.base and not row.wrong]
    best = min(right, key=lambda row: row.median, default=None)
    for row in result.rows:
        cells = [
            "-" if row.error is None else f"{row.error:.1e}",
            f"{row.median:.4g}",
            f"{min(row.values):.4g}",
            "wrong" if row.wrong else f"{row.ratio_of_medians:.3g}x",
            "wrong" if row.wrong else f"{row.ratio_of_minima:.3g}x",
            "-" if row.share is None else f"{row.share:.1%}",
        ]
        if floors and row.floor:
            cells += [f"{row.floor / row.median:.0%}", f"{row.tflops:.3g}", f"{row.gigabytes:.4g}"]
        elif floors:
            cells += ["-"] * len(FLOOR_HEADINGS)
        star = "*" if row is best else " "
        line = f"  {row.name:{width - 4}} {star}" + "".join(f"{cell:>11}" for cell in cells)
        lines.append(f"{line}  {row.remark}".rstrip())
    lines += [f"  {sentence}" for sentence in result.left_out]
    return "\n".join(lines) + "\n"


def as_json(case: Case, threads: int, results: list[Result], failure: str | None) -> dict[str, Any]:
    """A measured case with every single value; `failure`: why it ended early."""
    return {
        "name": case.name,
        "title": case.title,
        "threads": threads,
        "failure": failure,
        "comparisons": [
            asdict(result) | {"rows": [asdict(row) | {"median": row.median} for row in result.rows]}
            for result in results
        ],
    }


def write_json(path: Path, facts: dict[str, Any], measured: list[dict[str, Any]]) -> None:
    """Everything, with every single value."""
    path.write_text(json.dumps({"head": facts, "cases": measured}, indent=1) + "\n")


def summary(measured: list[dict[str, Any]], quick: bool) -> str:
    """The last table: of each comparison that has a floor or a goal ours, and what came of the
    goals; then what failed. Nothing where there is none of these."""
    lines = []
    for case in measured:
        for found in case["comparisons"]:
            rows = [row for row in found["rows"] if row["base"] and not row["wrong"]]
            ours = min(rows, key=lambda row: row["median"], default=None)
            timed = found["unit"] in TIMES
            if not found["verdicts"] and not (ours and ours["floor"] and timed):
                continue
            if ours:
                share = f", {ours['floor'] / ours['median']:.0%} of floor" if ours["floor"] else ""
                figure = f"{ours['median']:.3g} {found['unit']}{share}"
            else:
                figure = "wrong" if found["rows"] else "failed"
            lines.append(f"  {case['name']:6}{found['title']:80} {figure}")
            for verdict in found["verdicts"]:
                met = {True: "met", False: "MISSED", None: "not decided"}[verdict["met"]]
                lines.append(f"{'':10}{verdict['wanted']:42}{met:13}{verdict['found']}")
        if case["failure"]:
            lines.append(f"  {case['name']:6}{case['failure']}")
    title = "toy sizes: no goal can be met" if quick else "ours (the best of several) and its goals"
    return "\n".join([f"\nsummary: {title}", *lines]) + "\n" if lines else ""
