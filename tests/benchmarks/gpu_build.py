"""Compiles the kernels of retention for this GPU, many at a time: each process runs what is ours in
its share of the comparisons once, and leaves in Triton's cache on the disk what it compiled.

    python -m tests.benchmarks.gpu_build 0 8        the first of eight shares; --quick: of the toys

Not here: results.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.catalog import allow_kernels_alone

ROOT = Path(__file__).parents[2]
MOST_PROCESSES, CORES_EACH = 8, 2
PATIENCE = 180.0
"Seconds; what is not compiled then is compiled when it is measured."


def build_in_parallel() -> str:
    """Compiles all there is; in words, how that went."""
    shares = max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) // CORES_EACH))
    started = time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.gpu_build", str(share), str(shares)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for share in range(shares)
    ]
    failed = 0
    for worker in workers:
        try:
            failed += worker.wait(max(0.0, PATIENCE - (time.monotonic() - started))) != 0
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            failed += 1
    took = f"{time.monotonic() - started:.0f} s by {shares} processes"
    missed = f", of which {failed} failed: what they had is compiled later" * (failed > 0)
    return f"kernels of retention compiled in {took}{missed}"


def build(share: int, shares: int, quick: bool) -> None:
    """Runs what is ours in every `shares`-th comparison."""
    allow_kernels_alone()
    # now that the kernels can be imported
    from tests.benchmarks import gpu_accuracy, gpu_retention
    from tests.benchmarks.measure import Settings

    settings = Settings(quick=quick)
    cases = (*gpu_accuracy.CASES, *gpu_retention.CASES)
    comparisons = (comparison for case in cases for comparison in case.build(settings))
    for number, comparison in enumerate(comparisons):
        if number % shares == share:
            inputs = comparison.draw()
            for contender in comparison.contenders.values():
                if contender.base:
                    if contender.prepare:
                        contender.prepare(*inputs)
                    contender.run(*inputs)


if __name__ == "__main__":
    build(int(sys.argv[1]), int(sys.argv[2]), "--quick" in sys.argv[3:])
