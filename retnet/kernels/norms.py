"""Root mean square normalization in plain torch: alone, after a residual sum, and per head with a
gate. Not here: fused versions of other libraries.

Each function is plain enough for torch.compile to make one pass of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times `weight` (arXiv:1910.07467, equation
    4).

    x [..., D], weight [D] or None; computed in float32 or better, returned in x's dtype.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = None if weight is None else weight.to(dtype)
    return torch.nn.functional.rms_norm(x.to(dtype), x.shape[-1:], weight, eps).to(x.dtype)


def add_rms_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, eps: float, norm: Callable = rms_norm
) -> tuple[Tensor, Tensor]:
    """The residual sum and its norm: x + branch, rounded to x's dtype, and `rms_norm` of that.

    x, branch [..., D], weight [D] or None -> both [..., D]. norm: the `rms_norm` it runs on.
    """
    total = (x + branch).to(x.dtype)
    return total, norm(total, weight, eps)


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor | None, eps: float, norm: Callable = rms_norm
) -> Tensor:
    """silu(gate) * rms_norm(x), each head's V values normalized by themselves.

    x [B, T, H, V], gate [B, T, H * V], whose rows may lie further apart than they are wide, weight
    [V] or None, for all heads -> [B, T, H * V]. norm: the `rms_norm` it runs on.
    """
    return torch.nn.functional.silu(gate) * norm(x, weight, eps).flatten(-2)
