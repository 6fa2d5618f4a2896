"""Where each token stands: positions within documents, rotation angles, decays and the normalizer
Z.

Everything here is a function of integers, computed in float64 when it is needed. Nothing is a
parameter or a buffer, so casting a model to bfloat16 cannot move an angle, a decay or a position.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retnet.models.configuration import RetentionConfig


def rotation_frequencies(
    key_dim: int, rope: bool = False, device: torch.device | None = None
) -> Tensor:
    """Radians per token, float64 [K/2]: theta_i = 10000^(-i / (K/2 - 1)), i = 0 .. K/2 - 1, the end
    point included (torchscale's RetNetRelPos), or, with `rope`, 10000^(-2i / K)
    (arXiv:2104.09864, section 3.2.2)."""
    if rope:
        exponents = torch.arange(0, key_dim, 2, dtype=torch.float64, device=device) / key_dim
    else:
        exponents = torch.linspace(0, 1, key_dim // 2, dtype=torch.float64, device=device)
    return 10000.0**-exponents


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

    past [B]: tokens of the running document seen in earlier pieces, or None; segment_start [B, T],
    mask [B, T]: as in `retnet.kernels.reference`. A document that began before this piece goes on
    at `past`, or, where nothing is known of the past, as if none of its tokens had been masked.
    """
    if mask is None:
        count = torch.arange(time, device=device)[None]  # [1, T]: tokens before each one
    else:
        count = mask.long().cumsum(dim=1) - 1  # [B, T]
    if segment_start is None:
        return count if past is None else count + past[:, None]
    start = segment_start.long()
    before = start if mask is None else (count + 1 - mask.long()).gather(1, start.clamp(min=0))
    earlier = -start if past is None else past[:, None]
    return torch.where(start < 0, count + earlier, count - before)


@dataclass(frozen=True)
class Positions:
    """What every layer needs to know of where tokens stand; computed once per forward pass."""

    cos: Tensor
    "[B or 1, T, 1, K/2], float32 or better"
    sin: Tensor
    "[B or 1, T, 1, K/2]"
    query_scale: Tensor
    "[B or 1, T, H, 1]: K^-1/2 Z_n^-1/2, or K^-1/2 where the config has no score_norm"
    log_decay: Tensor
    "[H]"
    segment_start: Tensor | None
    "[B, T]"
    mask: Tensor | None
    "[B, T]"
    interleaved: bool
    "Whether pairs are (2i, 2i+1) or (i, i + K/2)."

    @staticmethod
    def at(
        position: Tensor,
        config: RetentionConfig,
        dtype: torch.dtype,
        segment_start: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> "Positions":
        """For tokens at `position` [B or 1, T]; tables in `dtype`.

        Z_n = sum_{t=0..n} gamma^t = expm1(log_decay (n+1)) / expm1(log_decay).
        """
        device, key_dim = position.device, config.key_dim
        frequencies = rotation_frequencies(key_dim, config.rope_frequencies, device)
        angle = position[..., None, None].double() * frequencies  # [B|1, T, 1, K/2]
        log_decay = log_decays(config.num_heads, config.use_lm_decay, device)
        z = normalizer(position[..., None] + 1, log_decay)  # [B|1, T, H]
        if not config.score_norm:
            z = torch.ones_like(z)
        return Positions(
            cos=angle.cos().to(dtype),
            sin=angle.sin().to(dtype),
            # clamp: a masked token before its document's first has no position, and its output is
            # unused
            query_scale=(key_dim * z.clamp(min=1)).rsqrt()[..., None].to(dtype),
            log_decay=log_decay.to(dtype),
            segment_start=segment_start,
            mask=mask,
            interleaved=config.rotary_interleaved,
        )

    def rotate(self, q: Tensor, k: Tensor, operator: Callable) -> tuple[Tensor, Tensor]:
        """q, k [B, T, H, K] -> rotated q * K^-1/2 * Z_n^-1/2 and rotated k, in their own dtype.

        operator: the kernels' `rotate`.
        """
        q = operator(q, self.cos, self.sin, self.query_scale, self.interleaved)
        return q, operator(k, self.cos, self.sin, None, self.interleaved)


def normalizer(count: Tensor, log_decay: Tensor) -> Tensor:
    """Z after `count` tokens of a document: sum_{t < count} gamma^t; shapes broadcast."""
    return torch.expm1(log_decay * count) / torch.expm1(log_decay)
