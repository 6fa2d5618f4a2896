"""The models of 1.3 billion parameters that steps and decoding are measured on where there is a
GPU: ours by its preset, Llama of as many, and flash-linear-attention's RetNet."""

from pathlib import Path

import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from retnet.kernels import select_kernels
from retnet.models.build import Architecture, ModelConfig, build_model
from tests.benchmarks.gpu import DEVICE
from tests.benchmarks.measure import Settings

PRESET = Path(__file__).parents[2] / "configs" / "model" / "retnet_xl_1b3.yaml"
TOY = {"hidden_size": 32, "num_heads": 2, "value_dim": 64, "intermediate_size": 64}


def our_1b3(settings: Settings) -> nn.Module:
    """The preset on the kernels of this device."""
    sizes = yaml.safe_load(PRESET.read_text()) | {"vocab_size": settings.size(32000, 64)}
    if settings.quick:
        sizes |= TOY | {"num_layers": 1, "chunk_size": 16}
    sizes["architecture"] = Architecture(sizes["architecture"])
    return build_model(ModelConfig(**sizes), select_kernels(device=DEVICE), seed=0)


def llama_1b3(settings: Settings) -> LlamaForCausalLM:
    """As wide and as deep, with a feed-forward that makes up for the other weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.size(32000, 64),
            hidden_size=settings.size(2048, 32),
            num_hidden_layers=settings.size(24, 1),
            num_attention_heads=settings.size(16, 2),
            intermediate_size=settings.size(5504, 64),
            max_position_embeddings=8192,
            attn_implementation="sdpa",
        )
    )


def fla_1b3(settings: Settings) -> nn.Module:
    """flash-linear-attention's RetNet of the same sizes; its classes register themselves."""
    config = AutoConfig.for_model(
        "retnet",
        vocab_size=32000,
        hidden_size=2048,
        num_hidden_layers=24,
        num_heads=8,
        expand_v=2,
        intermediate_size=3456,
        fuse_cross_entropy=False,
    )
    return AutoModelForCausalLM.from_config(config)
