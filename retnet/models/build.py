"""From a `model=` group to a model, and what a model costs: parameters and FLOPs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from retnet.kernels import Kernels
from retnet.models.configuration import NucleusXConfig, RetentionConfig
from retnet.models.heads import DecoderForCausalLM
from retnet.models.nucleus_x import NucleusXForCausalLM
from retnet.models.retnet import RetNetForCausalLM


def build_model(config: RetentionConfig, kernels: Kernels, seed: int) -> DecoderForCausalLM:
    """A freshly initialized model in float32, the same on every rank for the same seed."""
    torch.manual_seed(seed)
    model_class = NucleusXForCausalLM if isinstance(config, NucleusXConfig) else RetNetForCausalLM
    return model_class(config, kernels)


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers, tied ones once (works on the meta device)."""
    return sum(p.numel() for p in module.parameters())


def flops_per_token(model: DecoderForCausalLM) -> float:
    """Floating point operations of one training step per token, forward and backward.

    6 x the weights that multiply a token (every linear layer, the output head included, the
    embedding lookup not), plus 12 L H K V for retention: per head and token the recurrent form
    spends 2 K V on k v^T, 2 K V on q S (the decay of S is left out), and twice that in the backward
    pass. It is the cost of the definition whatever form or chunk size computes it, so figures
    compare across them.
    """
    config = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    return 6.0 * weights + 12.0 * config.num_layers * config.key_dim * config.value_dim


def export_model(config: RetentionConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors for `from_pretrained`.

    weights: as the model's `state_dict()` names them, all of one dtype, which the files keep.
    """
    model_class = NucleusXForCausalLM if isinstance(config, NucleusXConfig) else RetNetForCausalLM
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
