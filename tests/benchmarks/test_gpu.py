"""The cases of a GPU run where there is none, in Triton's interpreter, and compute what they ought.

Nothing here asserts a time.
"""

import json
import math
import subprocess
import sys
from os import environ
from pathlib import Path

from tests.benchmarks import gpu, gpu_models, gpu_steps

ROOT = Path(__file__).parents[2]


def test_every_case_runs_at_toy_size_and_is_right(tmp_path):
    file = tmp_path / "bench.json"
    names = [case.name for case in (*gpu.CASES, *gpu_steps.CASES, *gpu_models.CASES)]
    command = [sys.executable, "-m", "tests.benchmarks", *names, "--quick", "--json", str(file)]
    environment = environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(file.read_text())
    assert [case["name"] for case in written["cases"]] == names
    for case in written["cases"]:
        for comparison in case["comparisons"]:
            assert len(comparison["rows"]) > 1 and any(row["base"] for row in comparison["rows"])
            for row in comparison["rows"]:
                assert all(math.isfinite(value) and value > 0 for value in row["values"])
                assert row["share"] > 0
                unchecked = case["name"] in ("g0", "g10", "g13")
                assert unchecked or row["error"] < 2e-2, (comparison["title"], row)
