"""C10: how much memory the layers of C4 take, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.layers import compare
from tests.benchmarks.measure import Case, Comparison, Contender, Settings

ROOT = Path(__file__).parents[2]


def longer(settings: Settings, backward: bool = True) -> Comparison:
    """C4's comparison, which C10 weighs instead of timing it."""
    return compare(settings, settings.size(4096, 512), torch.bfloat16, backward)


def peak_memory(settings: Settings) -> Iterator[Comparison]:
    """C10: each contender of C4 in a process of its own."""
    contenders = longer(settings).contenders
    # The compiler's own memory would be weighed too.
    names = [name for name in contenders if "compiled" not in name]
    names = names[-2:] if settings.quick else names

    def weigh(name: str) -> float:
        # The bench's own command line again, so that the child has the same sizes and peers.
        command = [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:], "--weigh", name]
        threads = str(torch.get_num_threads())
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout)

    yield Comparison(
        "peak of C4's forward and backward, over what the process held before",
        {name: Contender(partial(weigh, name), base=contenders[name].base) for name in names},
        unit="MiB",
    )


def weigh(settings: Settings, name: str) -> float:
    """In a child of C10: MiB that the named contender's first turn takes beyond what is there.

    VmHWM is this process's own high-water mark; getrusage's maxrss would begin at the parent's.
    """
    comparison = longer(settings)
    inputs = comparison.draw()
    before = status_of_process("VmRSS")
    comparison.contenders[name].run(*inputs)
    return status_of_process("VmHWM") - before


def status_of_process(key: str) -> float:
    """MiB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


CASES = (Case("c10", "peak memory of the retention layer", peak_memory),)
