"""A model measured without its numbers: parameters by part, and what its forward pass keeps.

It is built on the meta device with one and with two layers, and counted with one and with two
rows; both counts grow evenly, so that a model of any size takes a second or two. Not here: what
else a step needs (`memory.py`).
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from retnet.kernels import Backend, KernelsConfig, select_kernels
from retnet.models.build import Architecture, ModelConfig, flops_per_token, public_config
from retnet.models.heads import DecoderForCausalLM
from retnet.models.nucleus_x import NucleusXForCausalLM
from retnet.models.retnet import RetNetForCausalLM
from retnet.training.recompute import (
    ActivationCheckpointing,
    activation_bytes,
    checkpoint_activations,
)

PARTS = ("embedding", "retention", "feed-forward", "norms", "head")


class Kept(NamedTuple):
    """Bytes that a forward pass keeps for the backward pass: `fixed + rows * row` in all, and of
    these `layer` for each row of one layer."""

    fixed: int
    row: int
    layer: int

    def of(self, rows: int) -> int:
        """Of a micro-batch of so many rows."""
        return self.fixed + rows * self.row


class Skeleton(NamedTuple):
    """A model in numbers."""

    parameters: dict[str, int]
    """By part, tied weights once."""
    weight_flops: float
    """Of one token's training step in products with weights."""
    retention_flops: float
    """Of one token's training step in retention itself."""
    kept: dict[ActivationCheckpointing, Kept]
    """By what is kept of a block; in the module's dtype."""

    @property
    def total(self) -> int:
        """Parameters in all."""
        return sum(self.parameters.values())

    @property
    def flops(self) -> float:
        """Of one token's training step, forward and backward."""
        return self.weight_flops + self.retention_flops


def measure_skeleton(
    model: ModelConfig, fused_projections: bool, sequence_length: int, dtype: torch.dtype
) -> Skeleton:
    """Of a model in `dtype`, on rows of `sequence_length` tokens."""
    num_layers, build = model.num_layers, partial(build_skeleton, model, fused_projections)
    with torch.device("meta"):
        one, two = build(1).to(dtype), build(2).to(dtype)
    flops = _at(num_layers, *(flops_per_token(model) for model in (one, two)))
    config = one.config
    retention = 12.0 * num_layers * config.key_dim * config.value_dim
    none, selective, block = (
        ActivationCheckpointing(name) for name in ("none", "selective", "block")
    )
    kept = {
        policy: _kept((one, two), policy, num_layers, sequence_length) for policy in (none, block)
    }
    # What selective keeps beside lies with its dispatcher, where no hook sees it.
    products = sequence_length * dtype.itemsize * _outputs(two.model.layers[0])
    fixed, row, layer = kept[block]
    kept[selective] = Kept(fixed, row + num_layers * products, layer + products)
    kept = {policy: kept[policy] for policy in (none, selective, block)}
    return Skeleton(parameters_by_part(model), flops - retention, retention, kept)


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Trainable numbers of each part; a tied weight is the embedding's."""
    with torch.device("meta"):
        one, two = (_count_parts(build_skeleton(model, True, layers)) for layers in (1, 2))
    return {part: _at(model.num_layers, one.get(part, 0), two.get(part, 0)) for part in PARTS}


def build_skeleton(model: ModelConfig, fused_projections: bool, layers: int) -> DecoderForCausalLM:
    """The model with so many layers, on plain torch's operators, which are there everywhere."""
    names = ("retention", "rms_norm", "loss", "update", "elementwise")
    plain = dict.fromkeys(names, Backend.torch)
    kernels = select_kernels(KernelsConfig(**plain, fused_projections=fused_projections))
    nucleus_x = model.architecture is Architecture.nucleus_x
    kind = NucleusXForCausalLM if nucleus_x else RetNetForCausalLM
    return kind(public_config(replace(model, num_layers=layers)), kernels)


def _at(layers: int, one: float, two: float) -> float:
    """What grows by as much for each layer, at so many layers."""
    return one + (layers - 1) * (two - one)


def _kept(
    models: tuple[DecoderForCausalLM, DecoderForCausalLM],
    policy: ActivationCheckpointing,
    num_layers: int,
    length: int,
) -> Kept:
    """Of a model with so many layers, by those with one and two."""
    sizes = []
    for model in models:
        checkpoint_activations(model, policy)
        batches = (torch.zeros(rows, length, dtype=torch.long, device="meta") for rows in (1, 2))
        sizes.append(
            [activation_bytes(model, {"input_ids": b, "shift_labels": b}) for b in batches]
        )
    one_row, two_rows = (_at(num_layers, *by_layers) for by_layers in zip(*sizes, strict=True))
    layer = (sizes[1][1] - sizes[1][0]) - (sizes[0][1] - sizes[0][0])
    return Kept(2 * one_row - two_rows, two_rows - one_row, layer)


def _outputs(block: nn.Module) -> int:
    """Numbers that a block's linear layers make of a token."""
    return sum(layer.out_features for layer in block.modules() if isinstance(layer, nn.Linear))


def _count_parts(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part_of(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def _part_of(name: str) -> str:
    if "embed_tokens" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "head"
    if "norm" in name:
        return "norms"
    return "feed-forward" if ".ffn." in name else "retention"
