"""The GPU's cases of retention run where there is none, in Triton's interpreter, and compute what
they ought; what is wrong or fails is said and nobody else's loss; floors are what the formulas say.

Nothing here asserts a time.
"""

import gc
import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from os import environ
from pathlib import Path

import pytest
import torch

from retnet.kernels import reference
from tests.benchmarks import roofline
from tests.benchmarks.__main__ import Bench, run_case
from tests.benchmarks.goals import Goal, judge_goals
from tests.benchmarks.gpu_parts import labels
from tests.benchmarks.gpu_peers import mlstm
from tests.benchmarks.gpu_workloads import Heads, decays, pack
from tests.benchmarks.machine import fresh_memory_is_nan
from tests.benchmarks.measure import Case, Comparison, Contender, Row, Settings, measure
from tests.benchmarks.report import as_json, summary, table

ROOT = Path(__file__).parents[2]
NAMES = ["g17", "g1", "g2", "g3", "g4", "g5", "g6", "parts", "sweep", "g14"]
UNCHECKED = {"SDPA, flash"}  # it does another job


@pytest.fixture(autouse=True)
def collect_little() -> Iterator[None]:
    """Every turn collects garbage; what the other tests hold need not be walked over."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[dict, str]:
    """All cases at toy size, as a process goes on that lost its GPU after a case c0: what it wrote
    as JSON and as text."""
    folder = tmp_path_factory.mktemp("bench")
    before = {"started": 0.0, "measured": [as_json(Case("c0", "", list), 1, [], "failed: lost")]}
    (folder / "before.json").write_text(json.dumps(before))
    command = [sys.executable, "-m", "tests.benchmarks", *NAMES, "--quick"]
    command += ["--json", str(folder / "bench.json"), "--after", str(folder / "before.json")]
    environment = environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 1, ran.stderr  # for what had failed before
    assert not ran.stderr, ran.stderr
    return json.loads((folder / "bench.json").read_text()), ran.stdout


def test_every_case_runs_at_toy_size_and_is_right(done):
    written, _ = done
    first, *cases = written["cases"]
    assert first["name"] == "c0" and [case["name"] for case in cases] == NAMES
    for case in cases:
        assert case["failure"] is None and case["comparisons"]
        for comparison in case["comparisons"]:
            rows = comparison["rows"]
            assert len(rows) > 1 and any(row["base"] for row in rows)
            assert not comparison["broken"] and not comparison["left_out"]
            for row in rows:
                assert all(math.isfinite(value) and value > 0 for value in row["values"])
                assert not row["wrong"]
                if comparison["unit"] == "ms":
                    assert row["name"] in UNCHECKED or row["error"] < 1e-6
                    assert row["name"] in UNCHECKED or row["floor"] > 0
                if comparison["unit"] == "error":
                    assert row["median"] < 1e-3 and row["remark"].endswith("bitwise equal")


def test_the_last_table_says_of_each_comparison_what_came_of_its_goals(done):
    written, text = done
    _, last = text.split("\nsummary: ")
    assert "failed: lost" in last
    for case in written["cases"]:
        for comparison in case["comparisons"]:
            if comparison["verdicts"]:
                assert comparison["title"] in last
            for verdict in comparison["verdicts"]:
                assert verdict["wanted"] in last and verdict["found"] in last


def test_floors_are_those_worked_out_for_a_model_of_a_billion_parameters():
    """8 heads of 256 / 512 in chunks of 256: 4 x 256 x 512 + (256 + 64) x (256 + 512) FLOPs and
    2 x (2 x 768 + 768 + 2 x 512) bytes a token and head forward."""
    forward, backward = roofline.forward(256, 256, 512), roofline.backward(256, 256, 512)
    assert forward == roofline.Work(770_048, 6_656)
    assert backward.bytes == 12_288 and backward.flops == 1_884_160
    both = (forward * (8 * 65_536), backward * (8 * 65_536))
    assert roofline.floor(both, 790e12, 4.3e12) == pytest.approx(2.31e-3, rel=1e-3)


@pytest.mark.parametrize(("chunk", "key", "value"), [(256, 256, 432), (128, 64, 128), (32, 16, 32)])
def test_the_launches_together_do_the_work_of_the_passes(chunk, key, value):
    together = sum(roofline.launches(chunk, key, value).values(), start=roofline.Work(0, 0))
    passes = roofline.forward(chunk, key, value)
    passes += roofline.backward(chunk, key, value, recompute=False)
    assert together.flops == passes.flops
    assert together.bytes > passes.bytes  # scores go out and in


def test_launches_are_named_by_their_place_and_those_that_join_by_what_they_join():
    scan = ["scores_kernel", "states_kernel", "join_kernel", "outputs_kernel"]
    backward = ["scores_kernel", "states_kernel", *["outputs_kernel"] * 3]
    assert labels(scan + backward) == [
        "scores of q, k", "states", "states: joining", "o",
        "scores of do, v", "gradients of states", "dq", "dk", "dv",
    ]  # fmt: skip
    assert labels(["a_kernel", "b_kernel"]) == ["0: a_kernel", "1: b_kernel"]


def contender(error: float, base: bool = False) -> Contender:
    return Contender(lambda: error, base, lambda inputs, outputs: outputs)


def test_who_is_wrong_by_the_standard_gets_no_ratio_and_ours_sooner_than_others():
    errors = {"plain": (1e-3, False), "ours": (1.9e-3, True), "peer": (9e-3, False)}
    contenders = {name: contender(*given) for name, given in errors.items()}
    contenders |= {"ours too": contender(2.1e-3, True), "peer too": contender(float("nan"))}
    comparison = Comparison("", contenders, standard="plain", goals=(Goal("ours too"),))
    result = measure(comparison, Settings(quick=True))
    wrong = {row.name for row in result.rows if row.wrong}
    assert wrong == {"ours too", "peer too"} and result.broken
    lines = [line for line in table(result).splitlines() if "wrong" in line]
    assert len(lines) == 2 and not any("x" in line for line in lines)
    assert result.verdicts[0].met is False


def test_a_contender_that_fails_leaves_a_sentence_and_the_others_their_figures():
    def fail() -> None:
        raise RuntimeError("no such instruction\nand a trace")

    contenders = {"ours": contender(1e-3, True), "peer": Contender(fail)}
    result = measure(Comparison("", contenders), Settings(quick=True))
    assert [row.name for row in result.rows] == ["ours"] and not result.broken
    assert result.left_out == ["peer failed: RuntimeError: no such instruction"]


def test_a_failure_of_ours_makes_a_comparison_a_broken_one():
    def fail() -> None:
        raise RuntimeError("no")

    contenders = {"ours": Contender(fail, base=True), "peer": contender(1e-3)}
    result = measure(Comparison("", contenders), Settings(quick=True))
    assert [row.name for row in result.rows] == ["peer"] and result.broken


def test_a_case_that_fails_keeps_what_it_had_and_says_why():
    def build(settings: Settings):
        yield Comparison("first", {"ours": contender(1e-3, True)})
        raise RuntimeError("no memory")

    results, failure = run_case(Case("g1", "", build), 1, Settings(quick=True))
    assert [result.title for result in results] == ["first"]
    assert failure == "failed: RuntimeError: no memory"
    assert failure in summary([as_json(Case("g1", "", build), 1, results, failure)], False)


def test_a_case_does_not_begin_where_it_may_outlast_the_time():
    options = Namespace(cases=["c0"], minutes=0.5, after=None)
    bench = Bench(options, Settings())
    bench.run()
    (case,) = bench.measured
    assert "left out: it may take 1 minutes" in case["failure"] and not bench.broken


def test_an_element_that_is_never_written_is_an_error():
    def run(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[:-1] = x[:-1]
        return y

    def check(inputs: tuple, outputs: torch.Tensor) -> float:
        return float(outputs.isnan().sum())

    contenders = {"ours": Contender(run, True, check)}
    comparison = Comparison("", contenders, lambda: (torch.ones(5),), poisoned=True)
    assert measure(comparison, Settings(quick=True)).rows[0].error == 1
    with fresh_memory_is_nan():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_goals_are_met_by_the_best_of_the_named_that_is_right():
    rows = [Row("ours", True, 0, [2.0]), Row("fla, a", False, 0, [5.0])]
    rows += [Row("fla, b", False, 0, [4.0]), Row("fla, c", False, 0, [1.0], wrong=True)]
    rows[0].floor = 1.0
    goal = Goal("ours", most=1.9, times={"fla|mlstm": 2.0, "SDPA": 2.0}, of_floor=0.5)
    verdicts = judge_goals((goal,), rows, "ms")
    assert [verdict.met for verdict in verdicts] == [False, True, True, None]
    assert verdicts[2].found == "fla, b: 2x ours"
    assert judge_goals((Goal("theirs"),), rows, "ms")[0].met is False


def test_packed_documents_fill_the_row_and_both_accounts_of_them_agree():
    segment_start, edges = pack(1000, 50)
    begins, ends = edges[:-1], edges[1:]
    assert begins[0] == 0 and ends[-1] == 1000 and (ends > begins).all() and len(begins) > 5
    for begin, end in zip(begins, ends, strict=True):
        assert (segment_start[0, begin:end] == begin).all()


def test_what_mlstm_kernels_gets_and_gives_is_retention_in_its_layout():
    heads = Heads(2, 8, 11)
    shapes = [(1, 9, heads.number, width) for width in (8, 8, 11, 11)]
    q, k, v, do = (torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        return reference.retention_parallel(q * scale, k, v, decays(heads).double())[0]

    def passes(inputs: tuple, by_head: bool, scale: float) -> tuple:
        """Theirs takes [B, H, T, X] and scales inside."""
        leaves = [x.detach().requires_grad_() for x in inputs[:3]]
        given = [x.transpose(1, 2) if by_head else x for x in leaves]
        o = run(*given, scale)
        o = o.transpose(1, 2) if by_head else o
        return (o, *torch.autograd.grad(o, leaves, inputs[3]))

    operator = mlstm(decays(heads), heads.key, heads.value, 16)
    theirs = operator.enter(q, k, v, do)
    assert theirs[2].shape == (1, heads.number, 9, 16)  # padded
    found = operator.leave(*passes(theirs, True, heads.key**-0.5))
    for a, b in zip(found, passes((q, k, v, do), False, 1.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
