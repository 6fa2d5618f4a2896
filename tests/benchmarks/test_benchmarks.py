"""The bench runs and compares what it says it compares.

Nothing here asserts a time.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retnet.models.rotary import log_decays
from tests.benchmarks import gpu, gpu_steps
from tests.benchmarks.measure import (
    PAIRS,
    Comparison,
    Contender,
    Settings,
    measure,
)
from tests.benchmarks.operators import defined, forward_backward, normalized_error
from tests.benchmarks.peers import open_peers
from tests.benchmarks.report import table

ROOT = Path(__file__).parents[2]
CASES = [f"c{number}" for number in (*range(12), 13)]
CASES += [case.name for case in (*gpu.CASES, *gpu_steps.CASES) if gpu.runnable()]


def bench(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_case_runs_and_stands_in_the_table_and_in_the_json(tmp_path):
    file = tmp_path / "bench.json"
    done = bench("--quick", "--threads", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert [case["name"] for case in written["cases"]] == CASES
    for case in written["cases"]:
        assert f"\n{case['name']}: {case['title']}" in done.stdout
        for comparison in case["comparisons"]:
            assert comparison["title"] in done.stdout and not comparison["left_out"]
            assert len(comparison["rows"]) > 1 and any(row["base"] for row in comparison["rows"])
            for row in comparison["rows"]:
                assert row["name"] in done.stdout
                assert all(math.isfinite(value) and value > 0 for value in row["values"])
                assert row["error"] is None or row["error"] < 2e-2, (case["name"], row)
    head = written["head"]
    assert head["versions"]["torch"] in done.stdout and head["command"] in done.stdout


def test_what_is_not_there_is_refused_with_a_sentence(tmp_path):
    done = bench("c99")
    assert done.returncode == 2 and "there is no case c99; needed some of c0, c1" in done.stderr
    with pytest.raises(ValueError, match="--peer other=/x: needed one of torchscale, syncdoth"):
        open_peers(["other=/x"])
    with pytest.raises(ValueError, match="needed a checkout of torchscale"):
        open_peers([f"torchscale={tmp_path}"])


def test_contenders_take_turns_on_the_same_fresh_inputs():
    seen = []
    contenders = {
        name: Contender(lambda x, name=name: seen.append((name, x.item())), base=name == "a")
        for name in "ab"
    }
    result = measure(Comparison("", contenders, lambda: (torch.rand(()),)), Settings())
    turns = len(result.rows[0].values)
    assert turns == len(result.rows[1].values) >= PAIRS
    assert [name for name, _ in seen] == ["a", "b"] * (turns + 1)  # one to warm up
    inputs = [x for _, x in seen]
    assert inputs[::2] == inputs[1::2] and len(set(inputs)) == turns + 1


def test_an_error_is_measured_and_ratios_are_to_the_fastest_base():
    def check(inputs: tuple, output: float) -> float:
        return abs(output - 2.0)

    contenders = {
        name: Contender(lambda value=value: value, base=value < 4, check=check)
        for name, value in {"a": 3.0, "b": 2.0, "c": 4.0}.items()
    }
    rows = measure(Comparison("", contenders), Settings(quick=True)).rows
    assert [row.error for row in rows] == [1.0, 0.0, 2.0]
    weighed = {
        name: Contender(contender.run, contender.base) for name, contender in contenders.items()
    }
    rows = measure(Comparison("", weighed, unit="MiB"), Settings()).rows
    assert [row.ratio_of_medians for row in rows] == [1.5, 1.0, 2.0]


def test_a_contender_that_does_not_fit_says_so_in_one_line():
    contenders = {
        "small": Contender(lambda: None, base=True),
        "huge": Contender(lambda: None, memory=2.0**60),
    }
    result = measure(Comparison("sizes", contenders), Settings(quick=True))
    assert [row.name for row in result.rows] == ["small"]
    (line,) = [line for line in table(result).splitlines() if "huge" in line]
    assert "left out: it needs about 1073741824 GiB" in line


def test_a_normalizer_of_its_own_is_no_error_and_anything_else_is_one():
    torch.manual_seed(0)
    log_decay = log_decays(2)
    inputs = tuple(torch.randn(1, 9, 2, width) for width in (4, 4, 6, 6))

    def truth(inputs: tuple) -> tuple:
        return forward_backward(defined, log_decay, *(x.double() for x in inputs))

    def error(change) -> float:
        def operator(*given: torch.Tensor) -> torch.Tensor:
            return change(defined(*given))

        found = forward_backward(operator, log_decay, *(x.double() for x in inputs))
        return normalized_error(log_decay, truth, inputs, found)

    def size(o: torch.Tensor) -> torch.Tensor:
        return o.abs().sum(dim=-1, keepdim=True)

    assert error(lambda o: o) < 1e-12 and error(lambda o: o / size(o).detach()) < 1e-12
    assert error(lambda o: -o) > 1 and error(lambda o: o + 0.1) > 1e-2
    assert error(lambda o: o / size(o)) > 1e-2  # its gradient too has to leave the divisor out
