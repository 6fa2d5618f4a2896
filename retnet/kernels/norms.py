"""Root mean square normalization in plain torch. Not here: fused versions of other libraries."""

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
