"""`make bench`: the cases of this machine, or those named, as tables and as JSON.

make bench                                              everything
make bench ARGS="c3 c6 --peer torchscale=~/torchscale"  two cases, beside another RetNet
make bench ARGS="--json bench.json"                     and every value into a file
make bench ARGS="--quick"                               toy sizes: does each case run?
"""

import argparse
import gc
import os
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from tests.benchmarks import (
    decoding,
    feeding,
    gpu,
    gpu_models,
    gpu_steps,
    layers,
    memory,
    operators,
    steps,
)
from tests.benchmarks.measure import Case, Result, Settings, measure, use_threads
from tests.benchmarks.peers import OPEN, open_peers
from tests.benchmarks.report import case_title, head, head_text, table, write_json

# A file of cases joins here.
CASES: dict[str, Case] = {
    case.name: case
    for case in sorted(
        (
            *operators.CASES,
            *layers.CASES,
            *memory.CASES,
            *steps.CASES,
            *decoding.CASES,
            *feeding.CASES,
        ),
        key=lambda case: int(case.name[1:]),
    )
} | {
    case.name: case for case in (*gpu.CASES, *gpu_steps.CASES, *gpu_models.CASES) if gpu.runnable()
}


def parse() -> tuple[argparse.Namespace, Settings]:
    """The command line; a peer that cannot be opened ends the program with its sentence."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    titles = ", ".join(f"{case.name} ({case.title})" for case in CASES.values())
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default all: {titles}")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a checkout of another RetNet ({', '.join(OPEN)}); again for more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    parser.add_argument("--threads", type=int, metavar="N", help="for all cases; default: each own")
    parser.add_argument("--quick", action="store_true", help="toy sizes; measures nothing")
    parser.add_argument("--weigh", metavar="CONTENDER", help=argparse.SUPPRESS)  # children of c10
    given = parser.parse_args()
    unknown = [name for name in given.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]}; needed some of {', '.join(CASES)}")
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads {given.threads}: needed at least 1")
    try:
        return given, Settings(given.quick, given.threads, open_peers(given.peer))
    except ValueError as error:
        parser.error(str(error))


def run_case(case: Case, threads: int, settings: Settings) -> list[Result]:
    """Measures a case and shows each comparison as soon as it is there."""
    sys.stdout.write(case_title(case, threads))
    results = []
    with use_threads(threads):
        for comparison in case.build(settings):
            # Shapes change from one to the next, and only so many graphs of a function are kept.
            torch.compiler.reset()
            results.append(measure(comparison, settings))
            sys.stdout.write(table(results[-1]))
            sys.stdout.flush()
    return results


def main() -> None:
    """Measures what was asked for."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed need not look for a GPU
    transformers_logging.set_verbosity_error()
    given, settings = parse()
    if given.weigh:
        sys.stdout.write(str(memory.weigh(settings, given.weigh)))
        return
    gc.freeze()  # what the imports made stays: collecting before each turn need not walk over it
    chosen = [case for name, case in CASES.items() if name in (given.cases or CASES)]
    threads = [settings.threads or case.threads for case in chosen]
    facts = head(settings, sorted(set(threads)))
    sys.stdout.write(head_text(facts))
    measured = [
        (case, count, run_case(case, count, settings))
        for case, count in zip(chosen, threads, strict=True)
    ]
    if given.json:
        write_json(given.json, facts, measured)


if __name__ == "__main__":
    main()
