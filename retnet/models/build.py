"""From a `model=` group to a model, and what a model costs: parameters and FLOPs."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn
from transformers.activations import ACT2FN

from retnet.kernels import Kernels
from retnet.models.configuration import (
    NucleusXConfig,
    RetentionConfig,
    RetNetConfig,
    check_sizes,
)
from retnet.models.heads import DecoderForCausalLM
from retnet.models.nucleus_x import NucleusXForCausalLM
from retnet.models.retnet import RetNetForCausalLM


class Architecture(Enum):
    """Which family of models."""

    retnet = "retnet"
    nucleus_x = "nucleus_x"


class ForwardMode(Enum):
    """How a sequence is computed; the result is the same."""

    parallel = "parallel"
    chunkwise = "chunkwise"
    recurrent = "recurrent"


@dataclass
class ModelConfig:
    """What is computed: one architecture and its sizes."""

    architecture: Architecture = Architecture.retnet
    "retnet or nucleus_x."
    vocab_size: int = 4096
    "Rows of the embedding; at least the tokenizer's vocabulary."
    num_layers: int = 4
    "Decoder layers, L."
    hidden_size: int = 192
    "Width of the residual stream, D."
    num_heads: int = 3
    "Retention heads, H; the key width per head is hidden_size / num_heads."
    value_dim: int = 324
    "Width of all heads' values together, H * V."
    intermediate_size: int = 324
    "Width of the feed-forward."
    gated: bool = True
    "retnet: RMSNorm and a gated feed-forward (true), or LayerNorm and a biased plain one (false)."
    activation: str = "swish"
    "Feed-forward activation: swish, gelu, relu, ..."
    embedding_norm: bool = True
    "Normalize embeddings before the first layer."
    scale_embedding: bool = True
    "Multiply embeddings by sqrt(hidden_size)."
    tie_word_embeddings: bool = False
    "Use the embedding matrix as the output head."
    use_lm_decay: bool = False
    "Decays of the paper's language models (windows of 32 to 512 tokens) instead of 1 - 2^(-5-h)."
    deepnorm: bool = False
    "DeepNorm residuals (post-norm)."
    forward_mode: ForwardMode = ForwardMode.chunkwise
    "chunkwise, parallel or recurrent; training wants chunkwise."
    chunk_size: int = 128
    "Tokens per chunk of the chunkwise form; never changes the result."
    dropout: float = 0.0
    "Probability of dropping a residual branch's element, from 0 to 1."
    activation_dropout: float = 0.0
    "Probability of dropping an element inside the feed-forward, from 0 to 1."
    drop_path: float = 0.0
    "Probability of dropping a whole residual branch in the last layer; linear from 0 in the first."
    norm_eps: float = 1e-6
    "Added to the mean square in norms."
    head_norm_eps: float = 1e-6
    "Added to the mean square in the norm over each head's output."
    initializer_range: float = 0.02
    "Standard deviation of initial feed-forward weights."
    z_loss: float = 0.0
    "Weight of mean(logsumexp(logits)^2) in the loss."
    label_smoothing: float = 0.0
    "Share of a target's probability spread over the vocabulary, from 0 to 1."

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "hidden_size", "num_heads", "value_dim")
        for key in (*sizes, "intermediate_size", "chunk_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)}: needed at least 1")
        check_sizes(
            self.hidden_size,
            self.value_dim,
            self.num_heads,
            ("model.hidden_size", "model.value_dim", "model.num_heads"),
        )
        if self.activation not in ACT2FN:
            raise ValueError(
                f"model.activation={self.activation}: needed one of transformers' activations, as "
                "gelu, relu, silu or swish"
            )
        for key in ("dropout", "activation_dropout", "drop_path", "label_smoothing"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)}: needed 0 <= {key} < 1")
        for key in ("norm_eps", "head_norm_eps", "initializer_range", "z_loss"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)}: needed at least 0")
        if self.architecture is Architecture.nucleus_x and not self.gated:
            raise ValueError(
                "model.gated=false: NucleusX is always gated; set model.architecture=retnet or "
                "model.gated=true"
            )


def public_config(
    config: ModelConfig, bos_token_id: int | None = 1, eos_token_id: int | None = 2
) -> RetentionConfig:
    """The Hugging Face config of a `model=` group; what `export/config.json` will hold."""
    shared = dict(
        vocab_size=config.vocab_size,
        decoder_layers=config.num_layers,
        decoder_embed_dim=config.hidden_size,
        decoder_retention_heads=config.num_heads,
        decoder_value_embed_dim=config.value_dim,
        decoder_ffn_embed_dim=config.intermediate_size,
        activation_fn=config.activation,
        no_scale_embedding=not config.scale_embedding,
        tie_word_embeddings=config.tie_word_embeddings,
        use_lm_decay=config.use_lm_decay,
        deepnorm=config.deepnorm,
        forward_mode=config.forward_mode.value,
        recurrent_chunk_size=config.chunk_size,
        dropout=config.dropout,
        activation_dropout=config.activation_dropout,
        drop_path_rate=config.drop_path,
        groupnorm_eps=config.head_norm_eps,
        initializer_range=config.initializer_range,
        z_loss_coeff=config.z_loss,
        label_smoothing=config.label_smoothing,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
    )
    if config.architecture is Architecture.nucleus_x:
        return NucleusXConfig(
            rms_norm_embedding=config.embedding_norm, rms_norm_eps=config.norm_eps, **shared
        )
    return RetNetConfig(
        use_glu=config.gated,
        layernorm_embedding=config.embedding_norm,
        layernorm_eps=config.norm_eps,
        **shared,
    )


def build_model(
    config: ModelConfig,
    kernels: Kernels,
    seed: int,
    bos_token_id: int | None = 1,
    eos_token_id: int | None = 2,
) -> DecoderForCausalLM:
    """A freshly initialized model in float32, the same on every rank for the same seed."""
    torch.manual_seed(seed)
    nucleus_x = config.architecture is Architecture.nucleus_x
    model_class = NucleusXForCausalLM if nucleus_x else RetNetForCausalLM
    return model_class(public_config(config, bos_token_id, eos_token_id), kernels)


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers, tied ones once (works on the meta device and split by ZeRO-3)."""
    return sum(_numbers(parameter) for parameter in module.parameters())


def _numbers(parameter: nn.Parameter) -> int:
    """How many numbers a weight has; where ZeRO-3 has split it, in all its pieces together."""
    return getattr(parameter, "ds_numel", parameter.numel())


def flops_per_token(model: DecoderForCausalLM) -> float:
    """Floating point operations of one training step per token, forward and backward.

    6 x the weights that multiply a token (every linear layer, the output head included, the
    embedding lookup not), plus 12 L H K V for retention: per head and token the recurrent form
    spends 2 K V on k v^T, 2 K V on q S (the decay of S is left out), and twice that in the backward
    pass. It is the cost of the definition whatever form or chunk size computes it, so figures
    compare across them.
    """
    config = model.config
    weights = sum(_numbers(m.weight) for m in model.modules() if isinstance(m, nn.Linear))
    return 6.0 * weights + 12.0 * config.num_layers * config.key_dim * config.value_dim
