"""Norm modules: RMSNorm on the chosen kernels, LayerNorm from torch, and the norm over heads with
its gate."""

import torch
from torch import Tensor, nn

from retnet.kernels import Kernels
from retnet.models.configuration import RetentionConfig


class RMSNorm(nn.Module):
    """RMSNorm with weight [D] (arXiv:1910.07467): [..., D] -> [..., D], computed in float32.

    With `branch` [..., D]: the sum x + branch, and its norm, in one pass.
    """

    def __init__(self, width: int, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.kernels = kernels

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if branch is None:
            return self.kernels.rms_norm(x, self.weight, self.eps)
        return self.kernels.add_rms_norm(x, branch, self.weight, self.eps)


def build_norm(
    config: RetentionConfig, width: int, kernels: Kernels, rms: bool | None = None
) -> nn.Module:
    """The config's norm over the last dimension, with weights; `rms` overrules its kind."""
    if rms if rms is not None else config.norm == "rms_norm":
        return RMSNorm(width, config.norm_eps, kernels)
    return nn.LayerNorm(width, eps=config.norm_eps)


def add_and_norm(norm: nn.Module, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """x + branch, and `norm` of it; [..., D] each. The module is called, not its weight taken:
    hooks are what gathers a weight that ZeRO-3 has split."""
    if isinstance(norm, RMSNorm):
        return norm(x, branch)
    total = x + branch
    return total, norm(total)


class HeadNorm(nn.Module):
    """silu(gate) * norm(x), each head's output normalized by itself, in float32 or better.

    The paper's GroupNorm; LayerNorm or RMSNorm over V as the config's norm is. Without weights, or
    with one weight [V] for all heads (`head_norm_affine`). x [B, T, H, V], gate [B, T, H * V] ->
    [B, T, H * V].
    """

    def __init__(self, config: RetentionConfig, kernels: Kernels) -> None:
        super().__init__()
        width = config.value_dim // config.num_heads
        self.gated_rms_norm = kernels.gated_rms_norm if config.norm == "rms_norm" else None
        self.eps = config.groupnorm_eps
        self.weight = nn.Parameter(torch.ones(width)) if config.head_norm_affine else None

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if self.gated_rms_norm is not None:
            return self.gated_rms_norm(x, gate, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = None if self.weight is None else self.weight.to(wide.dtype)
        normed = nn.functional.layer_norm(wide, x.shape[-1:], weight, eps=self.eps).to(x.dtype)
        return nn.functional.silu(gate) * normed.flatten(-2)
