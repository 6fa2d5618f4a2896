"""Presets are what they say, and a `model=` group builds what it describes."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from retnet import NucleusXForCausalLM, RetNetForCausalLM
from retnet.kernels import select_kernels
from retnet.models.build import (
    Architecture,
    ModelConfig,
    build_model,
    count_parameters,
    flops_per_token,
    public_config,
)

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "model").glob("*.yaml"))


def read(preset: Path) -> ModelConfig:
    fields = yaml.safe_load(preset.read_text())
    return ModelConfig(**fields | {"architecture": Architecture(fields["architecture"])})


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_has_as_many_parameters_as_it_says(preset):
    said = int(re.search(r": ([\d,]+) parameters", preset.read_text())[1].replace(",", ""))
    config = public_config(read(preset))
    with torch.device("meta"):
        model_class = NucleusXForCausalLM if config.model_type == "nucleus_x" else RetNetForCausalLM
        assert count_parameters(model_class(config)) == said


def small(**changes) -> ModelConfig:
    sizes = dict(
        vocab_size=53, num_layers=2, hidden_size=32, num_heads=2, value_dim=48, intermediate_size=40
    )
    return ModelConfig(**sizes | changes)


def test_the_same_seed_builds_the_same_model():
    one, other, third = (build_model(small(), select_kernels(), seed=s) for s in (1, 1, 2))
    for a, b, c in zip(one.parameters(), other.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


def test_flops_are_counted_as_the_docstring_says():
    """By hand for D 32, dv 48, f 40, L 2, H 2, vocabulary 53: a layer multiplies 2*32*32 + 3*32*48
    + 3*32*40 = 10,496 weights, the head 32*53 = 1,696; retention adds 12 L H K V."""
    model = build_model(small(), select_kernels(), seed=0)
    assert flops_per_token(model) == 6 * (2 * 10_496 + 1_696) + 12 * 2 * 2 * 16 * 24


@pytest.mark.parametrize(
    ("architecture", "gated"),
    [(Architecture.retnet, True), (Architecture.retnet, False), (Architecture.nucleus_x, True)],
)
def test_flops_per_token_are_what_torch_records(architecture, gated):
    """torch counts matrix products alone. In the recurrent form, the definition of the count, k v^T
    is elementwise: it costs as much as q S, which is counted, forward and backward."""
    config = small(architecture=architecture, gated=gated)
    model, ids = build_model(config, select_kernels(), seed=0), torch.randint(53, (2, 8))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids, forward_mode="recurrent", use_cache=False).loss.backward()
    elementwise = 6.0 * config.num_layers * (config.hidden_size // 2) * config.value_dim
    counted = counter.get_total_flops() / ids.numel() + elementwise
    assert counted == pytest.approx(flops_per_token(model), rel=0.02)


def test_sizes_that_do_not_divide_name_the_keys():
    with pytest.raises(ValueError, match=r"model\.hidden_size=33 .*model\.num_heads=2"):
        small(hidden_size=33)
    with pytest.raises(ValueError, match=r"model\.value_dim=49 .*model\.num_heads=2"):
        small(value_dim=49)
    with pytest.raises(ValueError, match="model.gated=false: NucleusX is always gated"):
        small(architecture=Architecture.nucleus_x, gated=False)
