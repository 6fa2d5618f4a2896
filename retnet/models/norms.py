"""Norm modules: RMSNorm on the chosen kernel, LayerNorm from torch, and the affine-free norm over
heads."""

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


def build_norm(config: RetentionConfig, width: int, kernels: Kernels) -> nn.Module:
    """The config's norm over the last dimension, with weights."""
    if config.norm == "rms_norm":
        return RMSNorm(width, config.norm_eps, kernels.rms_norm)
    return nn.LayerNorm(width, eps=config.norm_eps)


def head_norm(x: Tensor, config: RetentionConfig, kernels: Kernels) -> Tensor:
    """Normalizes each head's output by itself, without weights: x [B, T, H, V] -> [B, T, H, V].

    (The paper's GroupNorm; LayerNorm or RMSNorm over V as the config's norm is.) In float32 or
    better.
    """
    if config.norm == "rms_norm":
        return kernels.rms_norm(x, None, config.groupnorm_eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return nn.functional.layer_norm(wide, x.shape[-1:], eps=config.groupnorm_eps).to(x.dtype)
