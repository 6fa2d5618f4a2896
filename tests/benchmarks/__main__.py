"""`make bench`: the cases of this machine, or those named, as tables and as JSON.

make bench                                              everything
make bench ARGS="c3 c6 --peer torchscale=~/torchscale"  two cases, beside another RetNet
make bench ARGS=gpu                                     everything for a GPU, in eight minutes
make bench ARGS=sweep                                   other tiles for retention's kernels
make bench ARGS="--json bench.json"                     and every value into a file
make bench ARGS="--quick"                               toy sizes: does each case run?

Without Triton's GPU, TRITON_INTERPRET=1 and --quick show that the cases of a GPU run. For a memory
checker: compute-sanitizer python -m tests.benchmarks g17 --quick
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

from tests.benchmarks.catalog import GPU_MINUTES, open_cases
from tests.benchmarks.gpu_build import build_in_parallel
from tests.benchmarks.machine import gpu_is_lost, use_threads
from tests.benchmarks.measure import Case, Result, Settings, measure, sentence_of
from tests.benchmarks.report import (
    as_json,
    case_title,
    head,
    head_text,
    summary,
    table,
    write_json,
)

CASES, GPU_CASES, LEFT_OUT = open_cases()


def parse(given: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
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
        help="a checkout of another RetNet (torchscale, syncdoth, yar); again for more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    parser.add_argument("--threads", type=int, metavar="N", help="for all cases; default: each own")
    parser.add_argument("--quick", action="store_true", help="toy sizes; measures nothing")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"begin no case that may last longer; default: as long as it takes, {GPU_MINUTES:g} "
        "for gpu",
    )
    parser.add_argument("--weigh", metavar="CONTENDER", help=argparse.SUPPRESS)  # children of c10
    # where a process goes on that a fault took the GPU from: what it had measured
    parser.add_argument("--after", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    known = list(CASES) + ["gpu"] * bool(GPU_CASES)
    unknown = [name for name in options.cases if name not in known]
    if unknown:
        sentences = "".join(f"; {sentence}" for sentence in LEFT_OUT.values())
        if not GPU_CASES:
            sentences += "; gpu and the cases from g0 on need a GPU, or TRITON_INTERPRET=1 --quick"
        parser.error(f"there is no case {unknown[0]}; needed some of {', '.join(known)}{sentences}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads {options.threads}: needed at least 1")
    if options.minutes is None and "gpu" in options.cases:
        options.minutes = GPU_MINUTES
    try:
        return options, Settings(options.quick, options.threads, open_named(options.peer))
    except ValueError as error:
        parser.error(str(error))


def open_named(peers: list[str]) -> dict[str, Any]:
    """Checkouts of other RetNets."""
    if not peers:
        return {}
    from tests.benchmarks.peers import open_peers  # their libraries are missing on some machines

    return open_peers(peers)


def choose(names: list[str]) -> list[Case]:
    """The cases so named, in order; none named: all but those that want to be."""
    wanted = [n for name in names for n in (GPU_CASES if name == "gpu" else [name])]
    if wanted:
        order = list(GPU_CASES) if "gpu" in names else []
        order += [name for name in CASES if name not in order]
        return [CASES[name] for name in order if name in wanted]
    return [case for case in CASES.values() if not case.by_name]


def run_case(case: Case, threads: int, settings: Settings) -> tuple[list[Result], str | None]:
    """Measures a case and shows each comparison as soon as it is there; and, where the case did not
    get to its end, why."""
    sys.stdout.write(case_title(case, threads))
    results = []
    try:
        with use_threads(threads):
            for comparison in case.build(settings):
                # Shapes change from one to the next, and only so many graphs of a function are
                # kept.
                torch.compiler.reset()
                results.append(measure(comparison, settings))
                sys.stdout.write(table(results[-1]))
                sys.stdout.flush()
    except ModuleNotFoundError as error:
        why = f"left out from here on: {error}"
        sys.stdout.write(f"  {why}\n")
        return results, why
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        failure = f"failed: {sentence_of(error)}"
        sys.stdout.write(f"  {failure}\n")
        return results, failure
    return results, None


class Bench:
    """What was measured so far, and for how long."""

    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        self.options, self.settings = options, settings
        self.chosen = choose(options.cases)
        self.started, self.measured = time.time(), []
        if options.after:
            before = json.loads(options.after.read_text())
            self.started, self.measured = before["started"], before["measured"]
            options.after.unlink()
        failures = [case["failure"] or "" for case in self.measured]
        self.broken = any(failure.startswith("failed") for failure in failures)

    def run(self) -> None:
        """Every case; one that fails does not keep the others from theirs."""
        for index, case in enumerate(self.chosen):
            left = float("inf")
            if self.options.minutes is not None:
                left = self.options.minutes - (time.time() - self.started) / 60
            threads = self.settings.threads or case.threads
            if case.minutes > left and not self.settings.quick:
                why = f"left out: it may take {case.minutes:g} minutes, {max(left, 0):.1f} are left"
                self.measured.append(as_json(case, threads, [], why))
                continue
            results, failure = run_case(case, threads, self.settings)
            self.measured.append(as_json(case, threads, results, failure))
            self.broken |= any(result.broken for result in results)
            self.broken |= (failure or "").startswith("failed")
            if failure and gpu_is_lost() and self.chosen[index + 1 :]:
                self.go_on(self.chosen[index + 1 :])

    def go_on(self, rest: list[Case]) -> None:
        """With the other cases in a process that still has the GPU, in place of this one."""
        with NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump({"started": self.started, "measured": self.measured}, file)
        options = self.options
        words = [*(case.name for case in rest), "--after", file.name]
        words += [word for named in options.peer for word in ("--peer", named)]
        for name in ("json", "threads", "minutes"):
            if getattr(options, name) is not None:
                words += [f"--{name}", str(getattr(options, name))]
        words += ["--quick"] * options.quick
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks", *words])


def main() -> int:
    """Measures what was asked for; the exit status says whether any of ours failed or is wrong."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed need not look for a GPU
    if find_spec("transformers"):
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
    options, settings = parse()
    if options.weigh:
        from tests.benchmarks import memory  # its libraries are missing on some machines

        sys.stdout.write(str(memory.weigh(settings, options.weigh)))
        return 0
    gc.freeze()  # what the imports made stays: collecting before each turn need not walk over it
    bench = Bench(options, settings)
    threads = {settings.threads or case.threads for case in bench.chosen}
    facts = head(settings, sorted(threads), any(case.name in GPU_CASES for case in bench.chosen))
    sys.stdout.write(head_text(facts))
    for file, sentence in LEFT_OUT.items():
        if not options.cases or ("gpu" in options.cases and file.startswith("gpu")):
            sys.stdout.write(f"{sentence}\n")
    if "gpu" in options.cases and torch.cuda.is_available() and not options.quick:
        sys.stdout.write(f"{build_in_parallel()}\n")
    bench.run()
    sys.stdout.write(summary(bench.measured, settings.quick))
    if options.json:
        write_json(options.json, facts, bench.measured)
    return int(bench.broken)


if __name__ == "__main__":
    sys.exit(main())
