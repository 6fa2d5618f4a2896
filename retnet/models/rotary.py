"""Where each token stands: positions within documents, rotation angles, decays and the normalizer
Z.

Everything here is a function of integers, computed in float64 when it is needed. Nothing is a
parameter or a buffer, so casting a model to bfloat16 cannot move an angle, a decay or a position.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def rotation_frequencies(key_dim: int, device: torch.device | None = None) -> Tensor:
    """theta_i = 10000^(-i / (K/2 - 1)), i = 0 .. K/2 - 1, in radians per token; float64 [K/2].

    The end point is included, unlike in RoPE (torchscale's RetNetRelPos).
    """
    return 10000.0 ** -torch.linspace(0, 1, key_dim // 2, dtype=torch.float64, device=device)


def log_decays(
    num_heads: int, lm_decay: bool = False, device: torch.device | None = None
) -> Tensor:
    """log gamma_h, float64 [H]: gamma_h = 1 - 2^(-5-h) (arXiv:2307.08621, equation 8), or, with
    `lm_decay`, 1 - exp(linspace(ln 1/32, ln 1/512, H)) (its section 3.1). log1p: in float32 1 -
    2^-25 is already 1."""
    if lm_decay:
        exponents = torch.linspace(
            math.log(1 / 32), math.log(1 / 512), num_heads, dtype=torch.float64, device=device
        )
        return torch.log1p(-torch.exp(exponents))
    heads = torch.arange(num_heads, dtype=torch.float64, device=device)
    return torch.log1p(-(2.0 ** (-5 - heads)))


def token_positions(
    time: int,
    past: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Each token's position within its document, int64 [B or 1, T]; a masked token takes none.

    past [B]: tokens of the running document seen in earlier pieces; segment_start [B, T], mask [B,
    T]: as in `retnet.kernels.reference` (where a segment_start is negative it already counts the
    past).
    """
    index = torch.arange(time, device=device)[None]  # [1, T]
    if segment_start is None:
        count = index if mask is None else mask.long().cumsum(dim=1) - 1
        return count if past is None else count + past[:, None]
    if mask is None:
        return index - segment_start
    seen = torch.nn.functional.pad(mask.long().cumsum(dim=1), (1, 0))  # [B, T+1], before each token
    start = segment_start.long()
    return seen[:, 1:] - 1 - seen.gather(1, start.clamp(min=0)) - start.clamp(max=0)


@dataclass(frozen=True)
class Positions:
    """What every layer needs to know of where tokens stand; computed once per forward pass."""

    cos: Tensor
    "[B or 1, T, 1, K/2], float32 or better"
    sin: Tensor
    "[B or 1, T, 1, K/2]"
    query_scale: Tensor
    "[B or 1, T, H, 1]: K^-1/2 Z_n^-1/2"
    log_decay: Tensor
    "[H]"
    segment_start: Tensor | None
    "[B, T]"
    mask: Tensor | None
    "[B, T]"

    @staticmethod
    def at(
        position: Tensor,
        key_dim: int,
        log_decay: Tensor,
        dtype: torch.dtype,
        segment_start: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> "Positions":
        """For tokens at `position` [B or 1, T]; `log_decay` float64 [H]; tables in `dtype`.

        Z_n = sum_{t=0..n} gamma^t = expm1(log_decay (n+1)) / expm1(log_decay).
        """
        angle = position[..., None, None].double() * rotation_frequencies(key_dim, position.device)
        z = torch.expm1(log_decay * (position[..., None] + 1)) / torch.expm1(
            log_decay
        )  # [B|1, T, H]
        return Positions(
            cos=angle.cos().to(dtype),
            sin=angle.sin().to(dtype),
            # clamp: a masked token before its document's first has no position, and its output is
            # unused
            query_scale=(key_dim * z.clamp(min=1)).rsqrt()[..., None].to(dtype),
            log_decay=log_decay.to(dtype),
            segment_start=segment_start,
            mask=mask,
        )

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q, k [B, T, H, K] -> rotated q * K^-1/2 * Z_n^-1/2 and rotated k, in their own dtype."""
        scaled = _rotate(q, self.cos, self.sin) * self.query_scale
        return scaled.to(q.dtype), _rotate(k, self.cos, self.sin).to(k.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved pairs (2i, 2i+1) of x [B, T, H, K] by their angles."""
    even, odd = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
