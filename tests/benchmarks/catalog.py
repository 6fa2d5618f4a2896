"""Which cases there are on this machine, in the order in which they are measured, and what `gpu`
stands for. A file of cases joins here. Not here: measuring.

A file whose libraries are missing is left out with a sentence: on a machine that has torch and
Triton alone the kernels can still be checked and measured.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tests.benchmarks.measure import Case

ROOT = Path(__file__).parents[2]
CPU_FILES = ("operators", "layers", "memory", "steps", "decoding", "feeding")
# Right first, then retention, then the rest, the longest last.
GPU_FILES = (
    "gpu_accuracy",
    "gpu_retention",
    "gpu_parts",
    "gpu_decoding",
    "gpu",
    "gpu_steps",
    "gpu_models",
)
GPU_MINUTES = 8.0
"What `gpu` takes at most; a case that may take longer than what is left does not begin."


def allow_kernels_alone() -> None:
    """Where transformers is missing, `retnet` cannot be imported, which registers models with it;
    an empty package in its place lets `retnet.kernels` be."""
    if find_spec("transformers") is None and "retnet" not in sys.modules:
        package = ModuleType("retnet")
        package.__path__ = [str(ROOT / "retnet")]
        sys.modules["retnet"] = package


def open_cases() -> tuple[dict[str, Case], list[str], dict[str, str]]:
    """All cases by name, in order; the names of those that `gpu` stands for, none without a GPU;
    and a sentence for each file that cannot be opened."""
    allow_kernels_alone()
    left_out: dict[str, str] = {}
    cases = sorted(_of(CPU_FILES, left_out), key=lambda case: int(case.name[1:]))
    of_gpu = []
    if import_module("tests.benchmarks.gpu").runnable():
        of_gpu = _of(GPU_FILES, left_out)
    named = {case.name: case for case in (*cases, *of_gpu)}
    return named, [case.name for case in of_gpu if not case.by_name], left_out


def _of(files: tuple[str, ...], left_out: dict[str, str]) -> list[Case]:
    found = []
    for file in files:
        try:
            found += import_module(f"tests.benchmarks.{file}").CASES
        except ImportError as error:
            left_out[file] = f"the cases of {file}.py are left out: {error}"
    return found
