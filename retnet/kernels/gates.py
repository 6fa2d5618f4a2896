"""The gate of a gated feed-forward in plain torch, plain enough for torch.compile to make one pass
of it. Not here: the gate over the heads, which comes with their norm (`norms.py`)."""

from torch import Tensor
from torch.nn import functional


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv:2002.05202); both [..., F], also the two halves of one [..., 2F]."""
    return functional.silu(gate) * up
