"""Retention in the chunkwise form for any device: all chunks at once in a few batched matrix
products.

This is the form models train with. It never makes a T x T tensor: scores are [C, C] per chunk, and
chunk states are joined by one product with a small triangular decay matrix. The same arithmetic as
`reference.retention_chunkwise`, which defines it. Not here: hand-written backward passes and
kernels.
"""

import torch
from torch import Tensor

from retnet.kernels.reference import check_shapes, state_dtype

# Chunk states of one block are joined by an [N+1, N+1] product; longer sequences go block by block,
# so that memory for states and the cost of joining them stay bounded whatever T is.
CHUNKS_PER_BLOCK = 64


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
    """Retention (arXiv:2307.08621, equation 7).

    q, k [B, T, H, K]; v [B, T, H, V]; log_decay [H]; state [B, H, K, V] float32 or None;
    segment_start [B, T] and mask [B, T] as in `retnet.kernels.reference`; `chunk_size` in tokens,
    any T. Returns o [B, T, H, V] in v's dtype and, when `return_state`, the state [B, H, K, V]
    after the last token.
    Matrix products run in q's dtype, states are joined in float32.
    """
    check_shapes(q, k, v, log_decay, state, segment_start)
    time = q.shape[1]
    outputs = []
    start = 0
    while start < time:
        chunk = min(chunk_size, time - start)
        chunks = min((time - start) // chunk, CHUNKS_PER_BLOCK)
        piece = slice(start, start + chunks * chunk)
        whole = chunks * chunk == time
        o, state = _retain_block(
            q if whole else q[:, piece],
            k if whole else k[:, piece],
            v if whole else v[:, piece],
            log_decay.to(q.device, state_dtype(v)),
            state,
            None if segment_start is None else segment_start[:, piece] - start,
            None if mask is None else mask[:, piece],
            chunk,
        )
        outputs.append(o)
        start = piece.stop
    o = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return o, state if return_state else None


def _retain_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_start: Tensor | None,
    mask: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """One block of N whole chunks; shapes as in `retention_chunkwise` with T = N * chunk."""
    batch, time, heads, key_dim = q.shape
    value_dim, chunks, dtype = v.shape[-1], time // chunk, v.dtype

    if mask is None:
        age = torch.arange(1, chunk + 1, device=q.device)[
            None, None
        ]  # [1, 1, C], age inside the chunk
    else:
        age = mask.view(batch, chunks, chunk).long().cumsum(dim=-1)  # [B, N, C]
        k = k * mask[..., None, None]  # a masked token is seen by nobody
    segments = _Segments(segment_start, chunks, chunk)

    q = _by_chunk(q, chunks)  # [B, H, N, C, K]
    k = _by_chunk(k, chunks)
    v = _by_chunk(v, chunks)  # [B, H, N, C, V]
    rate = log_decay[None, :, None, None]  # [1, H, 1, 1]
    age, total = age[:, None], age[:, None, :, -1:]  # [B|1, 1, N|1, C], [B|1, 1, N|1, 1]

    since_start = segments.keep(torch.exp(rate * age), segments.from_before)  # [B|1, H, N|1, C]
    until_end = segments.keep(torch.exp(rate * (total - age)), segments.to_the_end)
    joined = _join_states(
        (k * until_end[..., None].to(dtype)).transpose(-1, -2) @ v,  # [B, H, N, K, V]
        state,
        rate * total.expand(-1, -1, chunks, -1),
        segments.resets,
    )
    before, new_state = (
        joined[:, :, :-1],
        joined[:, :, -1],
    )  # states entering each chunk; the last one

    distance = (age[..., :, None] - age[..., None, :]).clamp(min=0)
    decay = torch.exp(rate[..., None] * distance).tril().to(dtype)  # [B|1, H, N|1, C, C]
    scores = segments.keep((q @ k.transpose(-1, -2)) * decay, segments.same)  # [B, H, N, C, C]
    # A state grows with its document, and float16 ends at 65,504.
    wide = state_dtype(v) if dtype == torch.float16 else dtype
    cross = (q.to(wide) @ before.to(wide)) * since_start[..., None].to(wide)  # [B, H, N, C, V]
    cross = cross.to(dtype)
    flat = (batch * heads * chunks, chunk)
    o = torch.baddbmm(
        cross.reshape(*flat, value_dim), scores.reshape(*flat, chunk), v.reshape(*flat, value_dim)
    )
    o = o.view(batch, heads, chunks, chunk, value_dim).permute(0, 2, 3, 1, 4)
    o = o.reshape(batch, time, heads, value_dim)
    return o if mask is None else o * mask[..., None, None], new_state


def _by_chunk(x: Tensor, chunks: int) -> Tensor:
    """[B, T, H, X] -> [B, H, N, C, X], contiguous: three products read it."""
    batch, time, heads, width = x.shape
    return (
        x.reshape(batch, chunks, time // chunks, heads, width).permute(0, 3, 1, 2, 4).contiguous()
    )


def _join_states(
    states: Tensor, state: Tensor | None, log_carry: Tensor, resets: Tensor | None
) -> Tensor:
    """From what each chunk adds to the state, the state before each chunk and after the last one.

    states [B, H, N, K, V]: each chunk's own sum, as of its end; state [B, H, K, V] or None: before
    chunk 0; log_carry [B|1, H, N, 1]: log of the decay across each chunk; resets [B, N] or None:
    how many document boundaries have cut the stream up to the end of each chunk. Returns
    [B, H, N+1, K, V] in float32 or better. One matrix product instead of N steps, with
    M_nm = exp(carry_{m+1} + ... + carry_n), zero across a boundary.
    """
    batch, heads, chunks, key_dim, value_dim = states.shape
    dtype = state_dtype(states)
    if state is None:
        state = torch.zeros_like(states[:, :, 0])
    sums = torch.cat((state[:, :, None].to(dtype), states.to(dtype)), dim=2)  # 0: the past
    sums = sums.flatten(-2)  # [B, H, N+1, K*V]
    elapsed = torch.nn.functional.pad(log_carry.squeeze(-1).cumsum(-1), (1, 0))  # [B|1, H, N+1]
    matrix = torch.exp((elapsed[..., :, None] - elapsed[..., None, :]).clamp(max=0)).tril()
    if resets is not None:
        cut = torch.nn.functional.pad(resets, (1, 0))  # [B, N+1]
        matrix = matrix * (cut[:, None, :, None] == cut[:, None, None, :])
    return (matrix @ sums).view(batch, heads, chunks + 1, key_dim, value_dim)


class _Segments:
    """Document boundaries on the fixed chunk grid, as masks; all None where there is one document.

    from_before [B, 1, N, C]     the token's document began before its chunk: it sees the chunk's
    first state to_the_end  [B, 1, N, C]     the token's document reaches the chunk's end: it enters
    the chunk's sum same        [B, 1, N, C, C]  both tokens are of one document
    resets      [B, N]           running count of the chunks whose last document does not reach back
    before them
    """

    def __init__(self, segment_start: Tensor | None, chunks: int, chunk: int) -> None:
        self.from_before = self.to_the_end = self.same = self.resets = None
        if segment_start is None:
            return
        start = segment_start.view(-1, chunks, chunk)  # [B, N, C]
        first = torch.arange(chunks, device=start.device)[None, :, None] * chunk
        self.from_before = (start < first)[:, None]
        self.to_the_end = (start == start[..., -1:])[:, None]
        self.same = (start[..., :, None] == start[..., None, :])[:, None]
        self.resets = (start[..., -1] >= first[..., 0]).long().cumsum(-1)

    @staticmethod
    def keep(x: Tensor, where: Tensor | None) -> Tensor:
        """x where `where` holds, else zero."""
        return x if where is None else x * where
