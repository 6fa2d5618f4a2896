"""Rotation of queries and keys by their positions' angles in plain torch, plain enough for
torch.compile to make one pass of it. Not here: the angles themselves."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None, interleaved: bool) -> Tensor:
    """Rotates pairs (2i, 2i+1) of the last dimension, or (i, i + K/2), by their angles; then times
    `scale`.

    x [B, T, H, K], also a strided view; cos, sin [B or 1, T, 1, K/2] and scale [B or 1, T, H, 1] or
    None, broadcast against x. Computed in cos's dtype, returned in x's.
    """
    wide = x.to(cos.dtype)
    if interleaved and not torch.compiler.is_compiling():
        # One pass instead of seven where nothing fuses them; the compiler knows no complex numbers.
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
        y = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
        return (y if scale is None else y * scale).to(x.dtype)
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else wide.chunk(2, dim=-1)
    turned = (a * cos - b * sin, b * cos + a * sin)
    y = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return (y if scale is None else y * scale).to(x.dtype)
