"""Blocks compile to one graph, once for a run, and find it again in the next."""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from retnet.kernels import select_kernels
from retnet.models.build import ModelConfig, build_model
from retnet.training.compile import Compile, compile_blocks, is_worth_compiling, rehearse
from retnet.training.engine import EngineConfig
from tests import forked

PURE = {"z_loss_coeff": 0.0, "label_smoothing": 0.0}


def small_model():
    config = ModelConfig(
        vocab_size=64,
        num_layers=3,
        hidden_size=32,
        num_heads=2,
        value_dim=64,
        intermediate_size=48,
        chunk_size=16,
    )
    return build_model(config, select_kernels(), seed=0)


def rows(seed: int) -> dict[str, torch.Tensor]:
    """Two documents in each row, that begin elsewhere for every seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(64, (2, 41), generator=generator)
    start = torch.zeros(2, 40, dtype=torch.int32)
    start[:, 5 + seed :] = 5 + seed
    return {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:].clone(), "segment_start": start}


def test_after_the_rehearsal_nothing_is_compiled_and_results_are_those_of_plain_torch(tmp_path):
    torch._dynamo.reset()
    counters.clear()
    plain, model = small_model(), small_model()
    compile_blocks(model.model.layers, tmp_path, backend="aot_eager")  # graphs, and no code yet
    before = torch.get_rng_state()
    rehearse(model, rows(0), PURE)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(weight.grad is None for weight in model.parameters())
    # Three layers share a graph: one for training, one for evaluation.
    assert counters["stats"]["unique_graphs"] == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (1, 2):
            for weight in (*model.parameters(), *plain.parameters()):
                weight.grad = None
            losses = [each(**rows(seed)).loss for each in (model, plain)]
            torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
            for loss in losses:
                loss.backward()
            for a, b in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
            model.eval()
            with torch.no_grad():
                model(**rows(seed), **PURE)
            model.train()
    assert counters["stats"]["unique_graphs"] == 2


RUN = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from retnet.training.compile import compile_blocks
from tests.retnet.training.test_compile import small_model
block = small_model().model.layers[0].ffn
compile_blocks([block], Path(sys.argv[1]))
block(torch.ones(2, 40, 32)).sum().backward()
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def test_the_next_run_finds_what_this_one_compiled(tmp_path):
    # without the folder that an earlier test in this process has settled on
    own = {key: word for key, word in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}

    def hits_and_misses() -> list[int]:
        command = ["-c", RUN, str(tmp_path / "cache")]
        done = forked.run(*command, folder=tmp_path, env=own, timeout=300)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    hits, misses = hits_and_misses()
    assert hits == 0 and misses > 0
    hits, misses = hits_and_misses()
    assert misses == 0


def test_auto_compiles_long_runs_and_never_at_stage_3():
    def chosen(mode: Compile, stage: int, device: str, flops: float) -> bool:
        return is_worth_compiling(mode, stage, torch.device(device), flops)

    assert chosen(Compile.auto, 1, "cuda", 1e18) and chosen(Compile.auto, 1, "cpu", 1e18)
    assert not chosen(Compile.auto, 1, "cuda", 1e12) and not chosen(Compile.auto, 1, "cpu", 1e12)
    assert not chosen(Compile.off, 1, "cuda", 1e18) and chosen(Compile.on, 1, "cpu", 1.0)
    assert not chosen(Compile.auto, 3, "cuda", 1e18)
    with pytest.raises(ValueError, match="engine.compile is on and engine.stage is 3"):
        EngineConfig(stage=3, compile=Compile.on)


WITHOUT = """
from retnet.training.compile import Compile, choose_compilation, finds_compiler
print(choose_compilation(Compile.auto, True, finds_compiler()))
try:
    choose_compilation(Compile.on, True, finds_compiler())
except ValueError as error:
    print(error)
"""


def test_without_a_compiler_auto_does_without_and_on_says_what_is_missing(tmp_path):
    # a search path on which there is nothing, and torch's default name of the compiler
    own = {key: word for key, word in os.environ.items() if key not in ("PATH", "CXX")}
    given = own | {"PATH": str(tmp_path)}
    done = forked.run("-c", WITHOUT, folder=tmp_path, env=given, timeout=120)
    assert done.returncode == 0, done.stderr
    auto, on = done.stdout.splitlines()
    assert auto == "(False, 'layers not compiled (no C++ compiler)')"
    assert on.startswith("engine.compile is on and a machine of this run has no C++ compiler")
