"""The two published feed-forward layers. Names are the published checkpoints': `fc1` is the
activated branch."""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from retnet.kernels import Kernels
from retnet.models.configuration import RetentionConfig
from retnet.models.fused import FusibleProjections
from retnet.models.layers import Linear
from retnet.models.norms import build_norm


class FeedForward(nn.Module):
    """fc2(norm(activation(fc1 x))) with biases; the inner norm when the config says `subln`. [B, T,
    D] -> same."""

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.activation_fn]
        self.dropout = nn.Dropout(config.activation_dropout)
        self.ffn_layernorm = (
            build_norm(config, config.intermediate_size, kernels, rms=config.use_ffn_rms_norm)
            if config.subln
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.fc1(x)))
        return self.fc2(x if self.ffn_layernorm is None else self.ffn_layernorm(x))


class GatedFeedForward(FusibleProjections):
    """fc2(activation(fc1 x) * gate x) without biases (SwiGLU, arXiv:2002.05202). [B, T, D] ->
    same.

    Where fused, gate_up_proj has the rows of fc1, which others call gate, and then those of gate,
    which others call up.
    """

    fused_name = "gate_up_proj"

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        parts = dict.fromkeys(("fc1", "gate"), config.intermediate_size)
        super().__init__(config.hidden_size, parts, False, kernels.fused_projections)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACT2FN[config.activation_fn]
        self.swiglu = kernels.swiglu if config.activation_fn in ("swish", "silu") else None
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner, gate = self.project(x)  # [B, T, F] each
        if self.swiglu is not None:
            product = self.swiglu(inner, gate)
        else:
            product = self.activation(inner) * gate
        return self.fc2(self.dropout(product))
