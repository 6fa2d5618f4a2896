"""Retention in the chunkwise form for any device: all chunks at once in a few batched matrix
products.

This is the form models train with. It never makes a T x T tensor: scores are [C, C] per chunk, and
a state is handed from chunk to chunk. The same arithmetic as `reference.retention_chunkwise`, which
defines it; the backward pass is written out, so that little is kept for it. Not here: kernels for
one device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retnet.kernels.reference import check_decay, check_shapes, state_dtype

# What a block of chunks may hold: on a CPU what stays in its cache, elsewhere what bounds the
# memory for states without leaving much of a device idle.
BLOCK_ELEMENTS = 2**22
CHUNKS_PER_BLOCK = 64
# Up to so many chunks one [N+1, N+1] product joins their states, where a launch costs more than
# what it does. On a CPU one after the other was faster from the start, at half the time for 8. A
# graph for every length needs the product, too: it has no loop over chunks.
CHUNKS_PER_PRODUCT = {"cuda": 32}


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
    after the last token. Gradients flow to q, k, v and the state, once.
    Matrix products run in q's dtype, states are handed on in float32.
    """
    check_shapes(q, k, v, log_decay, state, segment_start, mask)
    check_decay(log_decay)
    if mask is not None:
        k = k * mask[..., None, None]  # a masked token is seen by nobody
    log_decay = log_decay.to(q.device, state_dtype(v))
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], dtype=state_dtype(v))
    o, state = _Retention.apply(q, k, v, state, log_decay, segment_start, mask, chunk_size)
    if mask is not None:
        o = o * mask[..., None, None]
    return o, state if return_state else None


@dataclass
class _Decays:
    """What the products of one block of N chunks are weighed with; zero across a document's edge.

    within       [B|1, H, N|1, C, C]  gamma^(i-j) for j <= i, in the products' dtype
    same         [B, 1, N, C, C]      both tokens are of one document (then `within` is their
                                      product's other factor); None where there is one document
    since_start  [B|1, H, N|1, C, 1]  what is left of the state before the chunk at token i
    until_end    [B|1, H, N|1, C, 1]  what is left of token j at the end of its chunk
    carry        [B|1, H, N]          logarithm of what is left of a state across each chunk
    cuts         [B, N] or None       running count of the chunks in which a document has begun,
                                      and the state is cut
    """

    within: Tensor
    same: Tensor | None
    since_start: Tensor
    until_end: Tensor
    carry: Tensor
    cuts: Tensor | None

    @staticmethod
    def of(
        log_decay: Tensor,
        segment_start: Tensor | None,
        mask: Tensor | None,
        piece: slice,
        chunk: int,
        dtype: torch.dtype,
    ) -> "_Decays":
        """Of the block `piece` of the time axis; log_decay [H], segment_start and mask [B, T]."""
        device, chunks = log_decay.device, (piece.stop - piece.start) // chunk
        if mask is None:  # age of a token inside its chunk, [B|1, 1, N|1, C]
            age = torch.arange(1, chunk + 1, device=device)[None, None, None]
        else:
            age = mask[:, piece].reshape(-1, 1, chunks, chunk).long().cumsum(dim=-1)
        rate = log_decay[None, :, None, None]  # [1, H, 1, 1]
        total = age[..., -1:]
        distance = (age[..., :, None] - age[..., None, :]).clamp(min=0)
        within = torch.exp(rate[..., None] * distance).tril().to(dtype)
        since_start, until_end = torch.exp(rate * age), torch.exp(rate * (total - age))
        carry = (rate * total).expand(-1, -1, chunks, -1).squeeze(-1)
        same = cuts = None
        if segment_start is not None:
            start = segment_start[:, piece].reshape(-1, 1, chunks, chunk) - piece.start
            first = torch.arange(chunks, device=device)[None, None, :, None] * chunk
            since_start = since_start * (start < first)
            until_end = until_end * (start == start[..., -1:])
            same = (start[..., :, None] == start[..., None, :]).to(dtype)
            cuts = (start[:, 0, :, -1] >= first[:, 0, :, 0]).long().cumsum(-1)
        wide = state_dtype(log_decay) if dtype == torch.float16 else dtype
        since_start, until_end = since_start[..., None].to(wide), until_end[..., None].to(dtype)
        return _Decays(within, same, since_start, until_end, carry, cuts)

    def weigh(self, scores: Tensor) -> Tensor:
        """scores [B, H, N, C, C], weighed in their place."""
        scores *= self.within
        if self.same is not None:
            scores *= self.same
        return scores


class _Retention(torch.autograd.Function):
    """q, k [B, T, H, K], v [B, T, H, V], the state before -> o [B, T, H, V], the state after.

    Kept for the backward pass: q, k, v by chunk, their scores [C, C] and the states before each
    chunk, all in the products' dtype. With P the weighed scores, S_n the state before chunk n, a
    and e the decays since the chunk's start and until its end, c_n the one across it, and A_n the
    gradient of S_n:

        o  = P v + a q S_n           S_(n+1) = c_n S_n + (e k)^T v
        dP = within (do v^T)         A_n     = c_n A_(n+1) + q^T (a do)
        dq = dP k + (a do) S_n^T     dk = dP^T q + e (v A_(n+1)^T)     dv = P^T do + (e k) A_(n+1)
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        log_decay: Tensor,
        segment_start: Tensor | None,
        mask: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        o, saved = torch.empty_like(v, memory_format=torch.contiguous_format), []
        ctx.blocks = list(_blocks(q, v, chunk_size))
        for piece, chunk in ctx.blocks:
            decays = _Decays.of(log_decay, segment_start, mask, piece, chunk, v.dtype)
            part, state, kept = _forward(*(x[:, piece] for x in (q, k, v)), state, decays)
            _put(part, o[:, piece])
            saved += kept
        ctx.save_for_backward(*saved, log_decay, segment_start, mask)
        ctx.set_materialize_grads(False)
        ctx.shapes = q.shape, v.shape
        return o, state

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the chunkwise form of retention is differentiated once; create_graph=True wants "
                'more: use forward_mode="parallel" there'
            )
        *saved, log_decay, segment_start, mask = ctx.saved_tensors
        shape, value_shape = ctx.shapes
        if not saved:  # no token
            return None, None, None, dstate, None, None, None, None
        dtype = saved[2].dtype
        if do is None:
            do = saved[2].new_zeros(value_shape)
        dq, dk, dv = (do.new_empty(s) for s in (shape, shape, value_shape))
        for index in reversed(range(len(ctx.blocks))):
            piece, chunk = ctx.blocks[index]
            decays = _Decays.of(log_decay, segment_start, mask, piece, chunk, dtype)
            kept = saved[5 * index : 5 * index + 5]
            *gradients, dstate = _backward(do[:, piece], dstate, kept, decays)
            for gradient, whole in zip(gradients, (dq, dk, dv), strict=True):
                _put(gradient, whole[:, piece])
        return dq, dk, dv, dstate, None, None, None, None


def _blocks(q: Tensor, v: Tensor, chunk_size: int) -> Iterator[tuple[slice, int]]:
    """The pieces of the time axis that are worked on at once, each a whole number of chunks, and
    their chunks' sizes: `chunk_size`, and at the end what is left."""
    batch, time, heads, _ = q.shape
    most = CHUNKS_PER_BLOCK
    if q.device.type == "cpu" and not torch.compiler.is_exporting():
        chunk_elements = batch * chunk_size * heads * (q.shape[-1] + v.shape[-1])
        most = min(most, max(1, BLOCK_ELEMENTS // chunk_elements))
    start = 0
    while start < time:
        chunk = min(chunk_size, time - start)
        stop = start + min((time - start) // chunk, most) * chunk
        yield slice(start, stop), chunk
        start = stop


def _forward(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decays: _Decays
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One block: o [B, H, N, C, V], the state after it, and what its backward pass needs."""
    chunks = decays.carry.shape[-1]
    q, k, v = (_by_chunk(x, chunks) for x in (q, k, v))  # [B, H, N, C, K or V]
    own = (k * decays.until_end).mT @ v  # [B, H, N, K, V]
    before, state = _join_states(own, state, decays)
    scores = decays.weigh(q @ k.mT)  # [B, H, N, C, C]
    o = (q.to(before.dtype) @ before).mul_(decays.since_start).to(v.dtype)
    return _add_product(o, scores, v), state, [q, k, v, scores, before]


def _backward(
    do: Tensor, dstate: Tensor | None, kept: tuple[Tensor, ...], decays: _Decays
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v [B, H, N, C, .] of one block, and of the state before it."""
    q, k, v, scores, before = kept
    chunks, wide = v.shape[2], before.dtype
    do = _by_chunk(do, chunks)
    since = do.to(wide) * decays.since_start
    down = q.to(wide).mT @ since  # [B, H, N, K, V]: each chunk's part of the states' gradient
    if dstate is None:
        dstate = down.new_zeros(down[:, :, 0].shape, dtype=state_dtype(down))
    dend, dstate = _join_states(down, dstate, decays, backward=True)
    dscores = decays.weigh(do @ v.mT)
    dq = _add_product((since @ before.mT).to(q.dtype), dscores, k)
    dk = (v.to(wide) @ dend.mT).to(k.dtype).mul_(decays.until_end)
    dk = _add_product(dk, dscores.mT, q)
    dv = ((k * decays.until_end).to(wide) @ dend).to(v.dtype)
    dv = _add_product(dv, scores.mT, do)
    return dq, dk, dv, dstate


def _join_states(
    own: Tensor, state: Tensor, decays: _Decays, backward: bool = False
) -> tuple[Tensor, Tensor]:
    """From what each chunk adds to the state, own [B, H, N, K, V], and the state [B, H, K, V]
    before them all: the states before each chunk, [B, H, N, K, V] in the dtype of their products,
    and the one after the last.

    S_0 = state, S_(n+1) = c_n S_n + own_n, c_n the carry across chunk n, zero where it is cut.
    `backward`: the same from the last chunk to the first, "before" meaning from later chunks.
    """
    # A state grows with its document, and float16 ends at 65,504.
    dtype = torch.float32 if own.dtype == torch.float16 else own.dtype
    if torch.compiler.is_exporting() or own.shape[2] <= CHUNKS_PER_PRODUCT.get(own.device.type, 0):
        return _join_by_product(own, state.to(state_dtype(own)), decays, backward, dtype)
    carry = decays.carry.exp()
    if decays.cuts is not None:
        kept = torch.nn.functional.pad(decays.cuts, (1, 0)).diff(dim=-1) == 0  # [B, N]
        carry = carry * kept[:, None]
    before = torch.empty_like(own, dtype=dtype)
    state = state.to(state_dtype(own), copy=True)
    order = range(own.shape[2])
    for n in reversed(order) if backward else order:
        before[:, :, n] = state
        state.mul_(carry[:, :, n, None, None]).add_(own[:, :, n])
    return before, state


def _join_by_product(
    own: Tensor, state: Tensor, decays: _Decays, backward: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same by one matrix, M_nm = c_m ... c_(n-1): every S_n in terms of the state and own."""
    elapsed = torch.nn.functional.pad(decays.carry.cumsum(-1), (1, 0))  # [B|1, H, N+1]
    matrix = torch.exp((elapsed[..., :, None] - elapsed[..., None, :]).clamp(max=0)).tril()
    if decays.cuts is not None:
        cuts = torch.nn.functional.pad(decays.cuts, (1, 0))  # [B, N+1]
        matrix = matrix * (cuts[:, None, :, None] == cuts[:, None, None, :])
    own, state = own.to(state.dtype).flatten(-2), state[:, :, None]  # [B, H, N, K V], [., ., 1, .]
    shape, state = state.shape[-2:], state.flatten(-2)
    if backward:
        joined = (matrix.mT @ torch.cat((own, state), dim=2)).unflatten(-1, shape)
        return joined[:, :, 1:].to(dtype), joined[:, :, 0].clone()
    joined = (matrix @ torch.cat((state, own), dim=2)).unflatten(-1, shape)
    return joined[:, :, :-1].to(dtype), joined[:, :, -1].clone()


def _by_chunk(x: Tensor, chunks: int) -> Tensor:
    """[B, T, H, X] -> [B, H, N, C, X], contiguous: a copy, which costs less than what strided
    operands take from the four or five products that read it."""
    batch, time, heads, width = x.shape
    x = x.reshape(batch, chunks, time // chunks, heads, width)
    return x.permute(0, 3, 1, 2, 4).contiguous()


def _put(x: Tensor, place: Tensor) -> None:
    """Copies x [B, H, N, C, X] to `place` [B, T, H, X]."""
    place.unflatten(1, x.shape[2:4]).copy_(x.permute(0, 2, 3, 1, 4))


def _add_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a @ b of [B, H, N, ., .], over x's memory."""
    return x.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2)).view(x.shape)
