"""Norm modules: RMSNorm on the chosen kernel, LayerNorm from torch, and the norm over heads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retnet.kernels import Kernels
from retnet.models.configuration import RetentionConfig


class RMSNorm(nn.Module):
    """RMSNorm with weight [D] (arXiv:1910.07467): [..., D] -> [..., D], computed in float32."""

    def __init__(self, width: int, eps: float, operator: Callable) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x, self.weight, self.eps)


def build_norm(
    config: RetentionConfig, width: int, kernels: Kernels, rms: bool | None = None
) -> nn.Module:
    """The config's norm over the last dimension, with weights; `rms` overrules its kind."""
    if rms if rms is not None else config.norm == "rms_norm":
        return RMSNorm(width, config.norm_eps, kernels.rms_norm)
    return nn.LayerNorm(width, eps=config.norm_eps)


class HeadNorm(nn.Module):
    """Normalizes each head's output by itself: [B, T, H, V] -> [B, T, H, V], in float32 or better.

    The paper's GroupNorm; LayerNorm or RMSNorm over V as the config's norm is. Without weights, or
    with one weight [V] for all heads (`head_norm_affine`).
    """

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        super().__init__()
        width = config.value_dim // config.num_heads
        self.rms_norm = kernels.rms_norm if config.norm == "rms_norm" else None
        self.eps = config.groupnorm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.head_norm_affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.rms_norm is not None:
            return self.rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = None if self.weight is None else self.weight.to(wide.dtype)
        return nn.functional.layer_norm(wide, x.shape[-1:], weight, eps=self.eps).to(x.dtype)
