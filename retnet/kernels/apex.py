"""NVIDIA apex's fused RMSNorm behind the seam. Not here: anything that runs without apex."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from retnet.kernels.norms import rms_norm as plain_rms_norm


def missing_apex(device: torch.device) -> str | None:
    """Why apex's FusedRMSNorm cannot be used on `device`, as half a sentence; None when it can."""
    if find_spec("apex") is None:
        return (
            "NVIDIA apex is not installed (build it from source; the package index's `apex` is "
            "another project)"
        )
    if find_spec("apex.normalization") is None:
        return (
            "the installed `apex` is not NVIDIA's (it has no apex.normalization); build NVIDIA's "
            "from source"
        )
    if find_spec("fused_layer_norm_cuda") is None:
        return (
            "apex was built without its CUDA extension (build it with APEX_CPP_EXT=1 "
            "APEX_CUDA_EXT=1)"
        )
    if device.type != "cuda":
        return f"apex's kernels need a CUDA device and this run is on {device.type}"
    return None


def load_rms_norm() -> Callable[[Tensor, Tensor | None, float], Tensor]:
    """The operator `rms_norm(x [..., D], weight [D] | None, eps) -> [..., D]` on apex's kernels."""
    fused = import_module("apex.normalization.fused_layer_norm")

    def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        # The compiler cannot look into apex's extension, and fuses the plain norm itself; apex's
        # own module does the same.
        if torch.compiler.is_compiling() or not x.is_cuda:
            return plain_rms_norm(x, weight, eps)
        if weight is None:
            return fused.fused_rms_norm(x, x.shape[-1:], eps)
        return fused.mixed_dtype_fused_rms_norm_affine(x, weight, x.shape[-1:], eps)

    return rms_norm
