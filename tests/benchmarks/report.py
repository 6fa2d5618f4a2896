"""What was measured as text and as JSON: the head that says on what, and a table for each case."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measure import Case, Result, Settings, available_memory, ceiling

HEADINGS = ("error", "median", "minimum", "medians", "minima", "ceiling")
EXPLANATION = (
    "error: largest relative L2 error of outputs (and gradients) against float64 (c6 and c7: of "
    "logits; c8: of the update).\nmedians, minima: times as long as ours, which has a star (the "
    "best of several, by its median).\nceiling: share of the measured ceiling, counting the FLOPs "
    "of the definition, whatever form spends more."
)


def head(settings: Settings, threads: list[int]) -> dict[str, Any]:
    """Where and when: everything a figure needs beside it. Measures the ceilings (C0)."""
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
        "free_gib": round(available_memory() / 2**30, 1),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "ceilings": {
            str(count): {
                kind: ceiling(kind, count, settings.quick)
                for kind in ("bfloat16", "float32", "copy")
            }
            for count in threads
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
    return (
        f"{quick}{facts['date']}   {facts['command']}\n{facts['cores']} cores of {facts['cpu']}, "
        f"bfloat16 by {' and '.join(facts['bfloat16']) or 'no instruction'}, "
        f"{facts['free_gib']} GiB free, load {facts['load']:.1f}\n{versions}\n{ceilings}\n"
        f"{EXPLANATION}\n"
    )


def case_title(case: Case, threads: int) -> str:
    """The line above a case's tables."""
    return f"\n{case.name}: {case.title}, {threads} thread{'s' * (threads > 1)}\n"


def table(result: Result) -> str:
    """One comparison as text."""
    width = max((len(row.name) for row in result.rows), default=0) + 4
    lines = [f"  {result.title} ({result.unit})"]
    lines.append(" " * width + "".join(f"{heading:>11}" for heading in HEADINGS))
    best = min((row for row in result.rows if row.base), key=lambda row: row.median, default=None)
    for row in result.rows:
        cells = (
            "-" if row.error is None else f"{row.error:.1e}",
            f"{row.median:.4g}",
            f"{min(row.values):.4g}",
            f"{row.ratio_of_medians:.3g}x",
            f"{row.ratio_of_minima:.3g}x",
            "-" if row.share is None else f"{row.share:.1%}",
        )
        star = "*" if row is best else " "
        lines.append(f"  {row.name:{width - 4}} {star}" + "".join(f"{cell:>11}" for cell in cells))
    lines += [f"  {sentence}" for sentence in result.left_out]
    return "\n".join(lines) + "\n"


def write_json(
    path: Path, facts: dict[str, Any], measured: list[tuple[Case, int, list[Result]]]
) -> None:
    """Everything, with every single value."""
    cases = [
        {
            "name": case.name,
            "title": case.title,
            "threads": threads,
            "comparisons": [
                {
                    **asdict(result),
                    "rows": [asdict(row) | {"median": row.median} for row in result.rows],
                }
                for result in results
            ],
        }
        for case, threads, results in measured
    ]
    path.write_text(json.dumps({"head": facts, "cases": cases}, indent=1) + "\n")
