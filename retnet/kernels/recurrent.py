"""Retention one token after the other, for decoding on any device: the state is read twice and
written twice a token. The same arithmetic as `reference.retention_recurrent`, which defines it.
"""

import torch
from torch import Tensor

from retnet.kernels.reference import check_shapes, state_dtype, wants_gradient


def check_in_place(state: Tensor | None, *inputs: Tensor) -> None:
    """The door of a step that overwrites `state`: ValueError where there is none, or where a
    gradient of it or of `inputs` would need what it was."""
    if state is None:
        raise ValueError("retention with in_place=True has no state to overwrite; pass one")
    if wants_gradient(state, *inputs):
        raise ValueError(
            "retention with in_place=True got inputs that require a gradient, which needs the "
            "state as it was; call it under torch.no_grad(), or leave in_place out"
        )


def retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    return_state: bool = True,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Retention (arXiv:2307.08621, equation 6): S_n = gamma S_(n-1) + k_n v_n^T, o_n = q_n S_n.

    Shapes and meaning as in `retnet.kernels.reference`: q, k [B, T, H, K]; v [B, T, H, V];
    log_decay [H]; state [B, H, K, V] float32 or None. Returns o [B, T, H, V] in v's dtype and, when
    `return_state`, the state after the last token. Computed in float32 or better. in_place: that
    state is `state` itself, overwritten, so that steps can be replayed from the same memory.
    """
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    given = state
    if in_place:
        check_in_place(state, q, k, v, log_decay)
    dtype = state_dtype(v)
    decay = torch.exp(log_decay.to(q.device, dtype))[None, :, None, None]  # [1, H, 1, 1]
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], dtype=dtype)
    state = state.to(dtype)
    if mask is not None:
        k = k * mask[..., None, None]
    outputs = []
    for n in range(q.shape[1]):
        kept = decay
        if mask is not None:  # a masked token does not decay
            kept = torch.where(mask[:, n, None, None, None], kept, 1.0)
        if segment_start is not None:
            same = segment_start[:, n] == segment_start[:, n - 1] if n else segment_start[:, 0] < 0
            kept = kept * same[:, None, None, None]
        k_n, v_n = k[:, n].to(dtype), v[:, n].to(dtype)
        state = (state * kept).addcmul_(k_n[..., :, None], v_n[..., None, :])  # [B, H, K, V]
        o_n = (q[:, n, :, None].to(dtype) @ state).squeeze(-2)
        outputs.append(o_n if mask is None else o_n * mask[:, n, None, None])
    if in_place:
        state = given.copy_(state)
    return torch.stack(outputs, dim=1).to(v.dtype), state if return_state else None
