"""`past_key_values` at the door: ours as it is, a published implementation's turned into ours.

The published caches are a sequence with one entry a layer:

    {"prev_key_value": kv, "scale": Z}               torchscale, syncdoth; NucleusX at first
    {"prev_key_value": kv, "scale": Z, "seqlen": n}  the transformers branch `add_retnet`
    (kv, Z, n)                                       NucleusX

with kv = S^T K^-1/2 Z^-1/2 [B, H, V, K] and Z [H] or [B or 1, H, 1, 1] the normalizer after the
last token, as their parallel and recurrent forms write them. (Their chunkwise forms, and torchscale
before August 2023, store another scale, and nothing in a cache tells.) n counts padding; Z does
not. Keys in S are rotated by their index in the padded row, so S is turned back by the padding.
Ours: S and the position.
"""

import torch
from torch import Tensor

from retnet.kernels.rotation import rotate
from retnet.models.configuration import RetentionConfig
from retnet.models.rotary import log_decays, normalizer, rotation_frequencies
from retnet.models.state import RetentionCache

Z_ROUNDING = 1e-6  # relative error of a Z that was summed up in float32


def read_cache(
    past: object, config: RetentionConfig, x: Tensor, attention_mask: Tensor | None
) -> RetentionCache | None:
    """The state that `past` holds, for new tokens x [B, T, D]. Raises ValueError on anything that
    is neither ours nor published, or not for this batch."""
    if past is None:
        return None
    if not isinstance(past, RetentionCache):
        past = _from_published(past, config, x, attention_mask)
    rows, batch = past.position.shape[0], x.shape[0]  # len() would fix the batch of an export
    if len(past) != config.num_layers or rows != batch:
        raise ValueError(
            f"past_key_values holds {len(past)} layers for {rows} sequences; the model has "
            f"{config.num_layers} layers and got {batch} sequences"
        )
    return past


def _from_published(
    past: object, config: RetentionConfig, x: Tensor, attention_mask: Tensor | None
) -> RetentionCache:
    layers = [_read_layer(layer) for layer in past] if isinstance(past, list | tuple) else []
    if not layers:
        raise ValueError(
            f"past_key_values is a {type(past).__name__}; needed what this model returned, or a "
            "published cache: per layer (kv, scale, seqlen) or a dict of prev_key_value, scale "
            "and, where it was kept, seqlen"
        )
    wide = (config.num_heads, config.value_dim // config.num_heads, config.key_dim)
    for kv, scale, _ in layers:
        if tuple(kv.shape[1:]) != wide or scale.numel() % config.num_heads:
            raise ValueError(
                f"past_key_values holds kv {list(kv.shape)} with scale {list(scale.shape)}; the "
                f"model needs kv [B, {', '.join(map(str, wide))}] with scale [{wide[0]}]"
            )
    kv, scale, length = layers[0]
    length, position = _count(config, kv, scale, length, attention_mask, x.shape[1])
    log_decay = log_decays(config.num_heads, config.use_lm_decay, x.device)
    z = normalizer(position[:, None], log_decay)[..., None, None]  # [B, H, 1, 1]
    frequencies = rotation_frequencies(config.key_dim, config.rope_frequencies, x.device)
    angle = -(length - position)[:, None, None, None] * frequencies  # [B, 1, 1, K/2]
    states = []
    for kv, _, _ in layers:
        state = kv.to(x.device).double() * (config.key_dim * z).sqrt()  # [B, H, V, K]
        state = rotate(state, angle.cos(), angle.sin(), None, config.rotary_interleaved)
        states.append(state.transpose(-1, -2).to(torch.promote_types(x.dtype, torch.float32)))
    return RetentionCache(states, position, length)


def _read_layer(layer: object) -> tuple[Tensor, Tensor, int | None]:
    """kv, scale and seqlen, which is None where the layout has none."""
    if isinstance(layer, dict) and {"prev_key_value", "scale"} <= set(layer):
        length = layer.get("seqlen")
        return layer["prev_key_value"], layer["scale"], None if length is None else int(length)
    if isinstance(layer, list | tuple) and len(layer) == 3:
        return layer[0], layer[1], int(layer[2])
    what = sorted(layer) if isinstance(layer, dict) else type(layer).__name__
    raise ValueError(
        f"past_key_values holds {what} for a layer; needed (kv, scale, seqlen) or a dict of "
        "prev_key_value, scale and, where it was kept, seqlen"
    )


def _count(
    config: RetentionConfig,
    kv: Tensor,
    scale: Tensor,
    length: int | None,
    attention_mask: Tensor | None,
    time: int,
) -> tuple[int, Tensor]:
    """How many tokens the cache has seen, with padding, and how many without it in each row [B].

    From seqlen, else from a mask that covers the past, else from the slowest head's
    Z = (1 - gamma^n) / (1 - gamma), as long as that still grows with n.
    """
    batch, device = len(kv), kv.device
    if length is None and attention_mask is not None and attention_mask.shape[1] > time:
        length = attention_mask.shape[1] - time
    if length is not None:
        if attention_mask is not None and attention_mask.shape[1] == length + time:
            return length, attention_mask[:, :length].to(device).long().sum(dim=1)
        return length, torch.full((batch,), length, device=device)
    log_decay = log_decays(config.num_heads, config.use_lm_decay, device)[-1]
    z = scale.double().reshape(-1, config.num_heads)[:, -1].to(device)  # [B or 1]
    remaining = 1 + z * torch.expm1(log_decay)  # gamma^n
    if (z * Z_ROUNDING > 0.2 * remaining).any():
        raise ValueError(
            "past_key_values does not say how many tokens it has seen, and they are too many to "
            "tell; pass an attention_mask that covers them"
        )
    position = (remaining.log() / log_decay).round().long().expand(batch)
    return int(position.max()), position
