"""Activation checkpointing changes what is kept and what is computed twice, and no result."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retnet.kernels import select_kernels
from retnet.models.build import ModelConfig, build_model
from retnet.training.compile import compile_blocks
from retnet.training.recompute import (
    ActivationCheckpointing,
    activation_bytes,
    checkpoint_activations,
    choose_activation_checkpointing,
    state_bytes,
)

SMALL = ModelConfig(
    vocab_size=64,
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    value_dim=64,
    intermediate_size=48,
    chunk_size=16,
    dropout=0.1,
)


def model_and_batch(kind: ActivationCheckpointing):
    model = build_model(SMALL, select_kernels(), seed=0).train()
    checkpoint_activations(model, kind)
    ids = torch.randint(64, (2, 41), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:].clone()}


def gradients(model, batch) -> list[torch.Tensor]:
    torch.manual_seed(1)  # dropout
    return list(torch.autograd.grad(model(**batch).loss, list(model.parameters())))


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("kind", ["selective", "block"])
def test_gradients_are_those_of_a_model_that_keeps_everything(kind, compiled, tmp_path):
    torch._dynamo.reset()
    found = []
    for each in (ActivationCheckpointing.none, ActivationCheckpointing(kind)):
        model, batch = model_and_batch(each)
        if compiled:
            compile_blocks(model.model.layers, tmp_path, backend="aot_eager")
        found.append(gradients(model, batch))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def products(kind: ActivationCheckpointing) -> dict[str, int]:
    """FLOPs of a step's matrix products: those with weights, and retention's own."""
    model, batch = model_and_batch(kind)
    with FlopCounterMode(display=False) as counter:
        gradients(model, batch)
    counts = {str(operator): n for operator, n in counter.get_flop_counts()["Global"].items()}
    return {name: counts[f"aten.{name}"] for name in ("mm", "bmm")}


def test_selective_repeats_no_product_with_weights_and_block_repeats_all():
    none, selective, block = (
        products(ActivationCheckpointing(kind)) for kind in ("none", "selective", "block")
    )
    assert selective["mm"] == none["mm"] < block["mm"]
    assert none["bmm"] < selective["bmm"] == block["bmm"]


def test_activations_are_counted_in_proportion_to_what_is_computed():
    def counted(batch: int, layers: int) -> int:
        config = ModelConfig(**vars(SMALL) | {"num_layers": layers})
        with torch.device("meta"):
            model = build_model(config, select_kernels(), seed=0)
            ids = torch.zeros(batch, 40, dtype=torch.long)
            return activation_bytes(model, {"input_ids": ids, "shift_labels": ids})

    one, two, four = counted(1, 2), counted(2, 2), counted(1, 4)
    assert 1.9 < two / one < 2.0  # the tables of angles are there once
    # Each layer keeps at least its input, q, k, v, gate and the retention's output.
    assert four - one > 2 * 4 * 40 * (3 * 32 + 3 * 64)


def test_auto_recomputes_only_where_memory_is_short():
    def chosen(asked: str, memory: float, compiled: bool = False) -> str:
        ids = torch.zeros(3, 40, dtype=torch.long)
        kind = choose_activation_checkpointing(
            ActivationCheckpointing(asked),
            lambda: build_model(SMALL, select_kernels(), seed=0),
            {"input_ids": ids, "shift_labels": ids},
            states=1e6,
            memory=memory,
            compiled=compiled,
        )
        return kind.value

    with torch.device("meta"):
        ids = torch.zeros(3, 40, dtype=torch.long)
        model = build_model(SMALL, select_kernels(), seed=0)
        needed = 1e6 + activation_bytes(model, {"input_ids": ids, "shift_labels": ids})
    assert chosen("auto", 1.3 * needed) == "none"
    assert chosen("auto", 1.2 * needed) == "selective"
    assert chosen("auto", 1.2 * needed, compiled=True) == "none"
    assert chosen("block", 1e12) == "block" and chosen("none", 1.0) == "none"


def test_each_stage_splits_what_it_says():
    """A million bfloat16 weights on 4 ranks, in MB: weights 2, gradients 2 + 4, the rest 12."""
    by_stage = [state_bytes(10**6, torch.bfloat16, stage, 4) / 1e6 for stage in range(4)]
    assert by_stage == [20.0, 11.0, 6.5, 5.0]
    assert state_bytes(10**6, torch.bfloat16, 2, 4, offload=True) == 3.5e6
