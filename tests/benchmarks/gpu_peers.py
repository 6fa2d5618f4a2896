"""Other libraries' linear attention, where they are installed, behind one interface with ours.

flash-linear-attention (`pip install flash-linear-attention`) has retention itself; mlstm-kernels
(NXAI Community License: to be measured beside, nothing more) has a gated form that is retention
when its input gate is open and its forget gate holds the decay; torch's attention does another job
for as many tokens. Each gets its inputs in its own layout before the clock starts. Not here:
checkouts of other RetNets (`peers.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks.gpu import DEVICE, peer

OPEN_GATE = 100.0
"An input gate whose sigmoid is one in float32."
ATTENTION_HEADS, ATTENTION_WIDTH = 32, 128


def unchanged(*tensors: Any) -> tuple[Any, ...]:
    return tensors


@dataclass(frozen=True)
class Operator:
    """Retention by one implementation."""

    run: Callable[..., Tensor]
    "q, k [B, T, H, K], v [B, T, H, V] -> o [B, T, H, V], or all of that in its own layout."
    enter: Callable[..., tuple] = unchanged
    "From q, k, v, do in our layout to its own."
    leave: Callable[..., tuple] = unchanged
    "From o and, where they are there, dq, dk, dv in its own layout to ours."
    judged: bool = True
    "Whether it computes retention at all."


def linear_peers(
    log_decay: Tensor, key_dim: int, value_dim: int, toy: bool, cu_seqlens: Tensor | None = None
) -> dict[str, Operator]:
    """Of what is installed; log_decay [H] is the default one. cu_seqlens: where the documents of
    a packed row begin and end, for those that know of documents."""
    found = {}
    if find_spec("fla") is not None:
        for chunk in (16, 32) if toy else (64, 128):
            run = partial(fla_retention, "chunk_retention", cu_seqlens, chunk_size=chunk)
            found[f"fla, chunk {chunk}"] = Operator(run)
        run = partial(fla_retention, "fused_chunk_retention", cu_seqlens)
        found["fla, fused chunk"] = Operator(run)
    if find_spec("mlstm_kernels") is not None and cu_seqlens is None:
        for chunk in (16,) if toy else (128, 256):
            found[f"mlstm siging, chunk {chunk}"] = mlstm(log_decay, key_dim, value_dim, chunk)
    return found


def fla_retention(
    name: str, cu_seqlens: Tensor | None, q: Tensor, k: Tensor, v: Tensor, **asked: int
) -> Tensor:
    """fla's default decay is ours. scale: a float, since Triton would compile another kernel for
    the integer 1."""
    operator = peer("fla.ops.retention", name)
    return operator(q, k, v, scale=1.0, cu_seqlens=cu_seqlens, **asked)[0]


def mlstm(log_decay: Tensor, key_dim: int, value_dim: int, chunk: int) -> Operator:
    """mlstm-kernels' XL kernels with sigmoid gates and without their normalizer: heads before time,
    queries scaled by K^-1/2 inside, values padded to a power of two."""
    root, padded = key_dim**0.5, 1 << (value_dim - 1).bit_length()
    forget = -torch.log(torch.expm1(-log_decay.double())).float()  # its sigmoid is gamma

    @cache  # inputs, like q, k and v: not to be made while the clock runs
    def gates(batch: int, heads: int, time: int) -> tuple[Tensor, Tensor]:
        held = forget[None, :, None].expand(batch, heads, time).contiguous()
        return torch.full_like(held, OPEN_GATE), held

    def by_head(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    def enter(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> tuple[Tensor, ...]:
        v, do = (nn.functional.pad(by_head(x), (0, padded - value_dim)) for x in (v, do))
        return by_head(q) * root, by_head(k), v, do

    def leave(o: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        o = o.transpose(1, 2)[..., :value_dim]
        if not gradients:
            return (o,)
        dq, dk, dv = (x.transpose(1, 2) for x in gradients)
        return o, dq * root, dk, dv[..., :value_dim]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        name = "mlstm_kernels.torch.chunkwise.triton_xl_chunk_siging"
        operator = peer(name, "mlstm_siging_chunkwise__xl_chunk")
        opened, held = gates(*q.shape[:3])
        return operator(q, k, v, opened, held, normalize=False, eps=0.0, chunk_size=chunk)

    return Operator(run, enter, leave)


def attention(toy: bool) -> dict[str, Operator]:
    """Causal softmax attention with 32 heads of 128 for as many tokens, by torch's backends."""
    backends = {"SDPA, flash": SDPBackend.FLASH_ATTENTION}
    if DEVICE.type == "cuda":
        backends["SDPA, cuDNN"] = SDPBackend.CUDNN_ATTENTION
    heads, width = (2, 16) if toy else (ATTENTION_HEADS, ATTENTION_WIDTH)

    def enter(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> tuple[Tensor, ...]:
        shape = 4, q.shape[0], heads, q.shape[1], width
        return torch.randn(shape, device=q.device).to(q.dtype).unbind()

    def run(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return {
        name: Operator(partial(run, backend), enter, judged=False)
        for name, backend in backends.items()
    }
