"""The definition of retention in plain torch: three forms, one signature, state in and state out.

Slow and clear; tests trust this file and every other backend is measured against it. Queries and
keys arrive rotated and scaled (`retnet/models/rotary.py` does that), so that here only the decay is
left:

    parallel    o_n = sum_{m<=n} gamma^(n-m) <q_n, k_m> v_m + gamma^(n+1) q_n S_0
    recurrent   S_n = gamma S_{n-1} + k_n v_n^T,   o_n = q_n S_n
    chunkwise   the parallel form on pieces, the state handed from one to the next

Retentive Network (arXiv:2307.08621), equations 5 to 7. Letters: B batch, T time, H heads, K key
width per head, V value width per head. All forms take and return

    q, k           [B, T, H, K]
    v              [B, T, H, V]
    log_decay      [H], negative, at least float32
    state          [B, H, K, V] in at least float32, or None for an empty past
    segment_start  [B, T] integers or None: the index, counted from the first token of this piece,
                   of the first token of each token's document; negative where the document began in
                   an earlier piece. Only such tokens see the incoming state. None: one document
                   that continues it.
    mask           [B, T] booleans or None: a False token is not in the stream. It neither decays
                   nor is seen, and its output is zero.
    return_state   whether the state after the last token is wanted
    returns        o [B, T, H, V] in v's dtype, and the state [B, H, K, V] or None
"""

import torch
from torch import Tensor


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which states and decays are kept: float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
) -> None:
    """The door of every form: raises ValueError on shapes that do not fit together."""
    batch, time, heads, key_dim = q.shape
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            "retention needs q and k [B, T, H, K] and v [B, T, H, V], got "
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if log_decay.shape != (heads,):
        raise ValueError(f"retention needs log_decay [{heads}], got {list(log_decay.shape)}")
    expected = (batch, heads, key_dim, v.shape[-1])
    if state is not None and state.shape != expected:
        raise ValueError(f"retention needs a state {list(expected)}, got {list(state.shape)}")
    for name, given in (("segment_start", segment_start), ("mask", mask)):
        if given is not None and given.shape != (batch, time):
            raise ValueError(f"retention needs {name} [{batch}, {time}], got {list(given.shape)}")


def wants_gradient(*inputs: Tensor | None) -> bool:
    """Whether what is computed from `inputs` now is to be differentiated."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def check_decay(log_decay: Tensor) -> None:
    """The door of forms that take the decay for a constant: ValueError where it is none."""
    if wants_gradient(log_decay):
        raise ValueError(
            "retention by chunks has no gradient of log_decay, which requires one; detach it, or "
            'use forward_mode="parallel"'
        )


def retention_scores(
    q: Tensor,
    k: Tensor,
    log_decay: Tensor,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """gamma^(n-m) <q_n, k_m> where n sees m, else 0: [B, H, T, T] in float32 or better."""
    dtype = state_dtype(q)
    time = q.shape[1]
    age = _age(q, mask)
    seen = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()[None]  # [1, T, T]
    if segment_start is not None:
        seen = seen & (segment_start[:, :, None] == segment_start[:, None, :])  # [B, T, T]
    if mask is not None:
        seen = seen & mask[:, None, :] & mask[:, :, None]
    # clamp: no overflow above the diagonal
    distance = (age[:, :, None] - age[:, None, :]).clamp(min=0)
    decay = torch.exp(log_decay.to(q.device, dtype)[None, :, None, None] * distance[:, None])
    return torch.einsum("bnhk,bmhk->bhnm", q.to(dtype), k.to(dtype)) * decay * seen[:, None]


def _age(q: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens up to and with each one, [B or 1, T]: what decays is the number of tokens that are in
    the stream, not the index in the tensor."""
    if mask is None:
        return torch.arange(1, q.shape[1] + 1, device=q.device)[None]
    return mask.long().cumsum(dim=1)


def retention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Every pair of tokens at once (equation 5): O(T^2) memory. Shapes: see the head of this
    file."""
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    dtype = state_dtype(v)
    log_decay = log_decay.to(q.device, dtype)
    age = _age(q, mask)  # [B or 1, T]
    scores = retention_scores(q, k, log_decay, segment_start, mask).to(dtype)
    o = torch.einsum("bhnm,bmhv->bnhv", scores, v.to(dtype))
    if state is not None:
        since_start = torch.exp(log_decay * age[..., None])  # [B, T, H]
        if segment_start is not None:
            since_start = since_start * (segment_start < 0)[..., None]
        if mask is not None:
            since_start = since_start * mask[..., None]
        state = state.to(dtype)
        o = o + torch.einsum("bnhk,bhkv->bnhv", q.to(dtype) * since_start[..., None], state)
    o = o.to(v.dtype)
    if not return_state:
        return o, None

    until_end = torch.exp(log_decay * (age[:, -1:] - age)[..., None])  # [B, T, H]
    if segment_start is not None:  # only the last document's tokens reach the end
        until_end = until_end * (segment_start == segment_start[:, -1:])[..., None]
    if mask is not None:
        until_end = until_end * mask[..., None]
    new_state = torch.einsum("bmhk,bmhv->bhkv", k.to(dtype) * until_end[..., None], v.to(dtype))
    if state is not None:
        survives = torch.exp(log_decay * age[:, -1, None])  # [B, H]
        if segment_start is not None:
            survives = survives * (segment_start[:, -1:] < 0)
        new_state = new_state + state * survives[..., None, None]
    return o, new_state


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
) -> tuple[Tensor, Tensor | None]:
    """Token by token (equation 6): O(1) memory in T. Shapes: see the head of this file."""
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    dtype = state_dtype(v)
    batch, time, heads, key_dim = q.shape
    gamma = torch.exp(log_decay.to(q.device, dtype))[None, :, None, None]
    if state is None:
        state = torch.zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype, device=q.device)
    state = state.to(dtype)
    outputs = []
    for n in range(time):
        if segment_start is not None:
            same = segment_start[:, n] == segment_start[:, n - 1] if n else segment_start[:, 0] < 0
            state = state * same[:, None, None, None]
        k_n, v_n = k[:, n].to(dtype), v[:, n].to(dtype)
        new_state = gamma * state + k_n[..., :, None] * v_n[..., None, :]  # [B, H, K, V]
        if mask is not None:
            new_state = torch.where(mask[:, n, None, None, None], new_state, state)
        state = new_state
        o_n = torch.einsum("bhk,bhkv->bhv", q[:, n].to(dtype), state)
        outputs.append(o_n if mask is None else o_n * mask[:, n, None, None])
    return torch.stack(outputs, dim=1).to(v.dtype), state if return_state else None


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    segment_start: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    chunk_size: int = 128,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Parallel inside chunks of `chunk_size` tokens, recurrent between them (equation 7). Shapes:
    see the head of this file. The last chunk is simply shorter where `chunk_size` does not divide
    T."""
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    outputs = []
    for start in range(0, q.shape[1], chunk_size):
        piece = slice(start, start + chunk_size)
        o, state = retention_parallel(
            q[:, piece],
            k[:, piece],
            v[:, piece],
            log_decay,
            state,
            None if segment_start is None else segment_start[:, piece] - start,
            None if mask is None else mask[:, piece],
        )
        outputs.append(o)
    return torch.cat(outputs, dim=1), state if return_state else None
