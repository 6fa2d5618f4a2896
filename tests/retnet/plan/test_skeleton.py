"""A skeleton's counts are those of the whole model."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from retnet.kernels import select_kernels
from retnet.models.build import (
    Architecture,
    ModelConfig,
    build_model,
    count_parameters,
    flops_per_token,
)
from retnet.plan.skeleton import build_skeleton, measure_skeleton, parameters_by_part
from retnet.training.recompute import (
    ActivationCheckpointing,
    activation_bytes,
    checkpoint_activations,
)

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "model").glob("*.yaml"))
SMALL = ModelConfig(
    vocab_size=64,
    num_layers=5,
    hidden_size=32,
    num_heads=2,
    value_dim=64,
    intermediate_size=48,
    chunk_size=16,
)
LENGTH = 40


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_every_preset_has_the_parameters_that_its_file_says(file):
    said = int(re.search(r"([\d,]+) parameters", file.read_text())[1].replace(",", ""))
    keys = yaml.safe_load(file.read_text())
    config = ModelConfig(**keys | {"architecture": Architecture(keys["architecture"])})
    assert sum(parameters_by_part(config).values()) == said


@pytest.mark.parametrize("changes", [{}, {"gated": False}, {"tie_word_embeddings": True}], ids=str)
def test_a_model_is_counted_by_its_first_two_layers(changes):
    config = replace(SMALL, **changes)
    model = build_model(config, select_kernels(), seed=0)
    counted = measure_skeleton(config, True, LENGTH, torch.float32)
    assert counted.total == count_parameters(model)
    assert counted.flops == flops_per_token(model)


@pytest.mark.parametrize("kind", ["none", "block"])
def test_what_is_kept_is_counted_by_two_layers_and_two_rows(kind):
    policy = ActivationCheckpointing(kind)
    kept = measure_skeleton(SMALL, True, LENGTH, torch.float32).kept[policy]
    with torch.device("meta"):
        model = build_skeleton(SMALL, True, SMALL.num_layers)
        checkpoint_activations(model, policy)
        ids = torch.zeros(3, LENGTH, dtype=torch.long)
        assert kept.of(3) == activation_bytes(model, {"input_ids": ids, "shift_labels": ids})


def test_selective_keeps_more_than_block_and_less_than_none():
    kept = measure_skeleton(SMALL, True, LENGTH, torch.float32).kept
    rows = [kept[ActivationCheckpointing(kind)].of(2) for kind in ("block", "selective", "none")]
    assert rows == sorted(rows) and len(set(rows)) == 3


def test_the_flops_of_weights_are_those_that_torch_counts():
    """In the recurrent form on one token, retention has no product with a weight in it."""
    counted = measure_skeleton(SMALL, True, LENGTH, torch.float32)
    model = build_model(SMALL, select_kernels(), seed=0)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, shift_labels=ids).loss.backward()
    products = counter.get_flop_counts()["Global"]
    assert products[torch.ops.aten.mm] == counted.weight_flops * LENGTH
