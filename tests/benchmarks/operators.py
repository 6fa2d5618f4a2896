"""C0 to C2: the machine's ceilings, and retention alone, forward and backward, beside plain torch
and the named checkouts of other RetNets."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn

from retnet import RetNetConfig
from retnet.kernels import reference, select_kernels
from retnet.models.rotary import log_decays
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error
from tests.benchmarks.peers import CHUNK

CHUNKS = (64, 128, 256)
Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain_parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The parallel form as one would write it, all in q's dtype, where `reference` computes in
    float32: q, k [B, T, H, K], v [B, T, H, V] -> [B, T, H, V]."""
    index = torch.arange(q.shape[1])
    distance = (index[:, None] - index[None]).clamp(min=0)
    decay = torch.exp(log_decay[:, None, None] * distance).tril().to(q.dtype)  # [H, T, T]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return (((q @ k.transpose(-1, -2)) * decay) @ v).transpose(1, 2)


def forward_backward(
    operator: Operator, log_decay: Tensor, q: Tensor, k: Tensor, v: Tensor, do: Tensor
) -> tuple[Tensor, ...]:
    """o, perhaps with its time in chunks, and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    o = operator(*leaves, log_decay)
    return (o.detach(), *torch.autograd.grad(o, leaves, do.view(o.shape)))


def defined(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The definition; in float64 the truth."""
    return reference.retention_chunkwise(q, k, v, log_decay, return_state=False)[0]


def normalized_error(
    log_decay: Tensor,
    truth: Callable[[tuple], tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> float:
    """The error of an operator that divides each [token, head] vector of o by a positive number of
    its own and keeps that number out of its gradients, as torchscale does.

    A head norm comes next, so only the vectors' directions count: both o are compared after
    dividing each vector by its length, and the gradients with those that the definition has where
    each vector of do is scaled as o was.
    """
    (o, *gradients), (right, *_) = outputs, truth(inputs)
    o = o.double().reshape(right.shape)
    scale = o.norm(dim=-1, keepdim=True) / right.norm(dim=-1, keepdim=True)  # [1, T, H, 1]
    q, k, v, do = (x.double() for x in inputs)
    _, *scaled = forward_backward(defined, log_decay, q, k, v, do * scale)
    o, right = (nn.functional.normalize(x, dim=-1) for x in (o, right))
    return relative_error([o, *gradients], [right, *scaled])


def peer_operators(
    settings: Settings, heads: int, key_dim: int, value_dim: int, time: int, dtype: torch.dtype
) -> dict[str, Operator]:
    """The named checkouts' retention at this shape."""
    config = RetNetConfig(
        vocab_size=8,
        decoder_layers=1,
        decoder_embed_dim=heads * key_dim,
        decoder_value_embed_dim=heads * value_dim,
        decoder_retention_heads=heads,
        decoder_ffn_embed_dim=8,
        use_glu=True,
    )
    chunk, found = settings.size(CHUNK, 32), {}
    for peer in settings.peers.values():
        found |= peer.operators(config, time, chunk, dtype)
    return found


def compare(
    settings: Settings,
    heads: int,
    key_dim: int,
    value_dim: int,
    time: int,
    dtype: torch.dtype,
    definition: bool = True,
) -> Comparison:
    """Retention forward and backward at one shape, batch 1; `definition`: also the parallel forms
    that keep their scores in float32 or many times over."""
    log_decay = log_decays(heads)

    def draw() -> tuple[Tensor, ...]:
        q, k, v, do = (
            torch.randn(1, time, heads, width) for width in (key_dim, key_dim, value_dim, value_dim)
        )
        return tuple(x.to(dtype) for x in (q * key_dim**-0.5, k, v, do))

    @cache  # one truth for all contenders: the inputs are the warm-up's
    def truth(inputs: tuple) -> tuple[Tensor, ...]:
        return forward_backward(defined, log_decay, *(x.double() for x in inputs))

    def contender(operator: Operator, tensors: int = 0, base: bool = False) -> Contender:
        return Contender(
            partial(forward_backward, operator, log_decay.float()),
            base=base,
            check=lambda inputs, outputs: relative_error(outputs, truth(inputs)),
            # the definition's, by the convention of `flops_per_token`
            work=12.0 * time * heads * key_dim * value_dim,
            memory=tensors * 4.0 * heads * time**2,
        )

    retain = select_kernels().retention_chunkwise

    def chunkwise(chunk: int, *args: Tensor) -> Tensor:
        return retain(*args, chunk_size=chunk, return_state=False)[0]

    contenders = {
        f"ours, chunk {chunk}": contender(partial(chunkwise, chunk), base=True) for chunk in CHUNKS
    }
    if dtype != torch.float32:  # there it is the definition
        contenders["parallel, plain torch"] = contender(plain_parallel, tensors=6)
    if definition:
        contenders["parallel, our definition (float32)"] = contender(
            lambda *args: reference.retention_parallel(*args, return_state=False)[0], tensors=8
        )
    for name, operator in peer_operators(settings, heads, key_dim, value_dim, time, dtype).items():
        if definition or "parallel" not in name:
            contenders[name] = contender(operator, tensors=8 * ("parallel" in name))
            contenders[name].check = partial(normalized_error, log_decay, truth)
    name = str(dtype).removeprefix("torch.")
    title = f"forward and backward, {name}, T {time}, {heads} heads of {key_dim} / {value_dim}"
    return Comparison(title, contenders, draw, ceiling=name)


def wide_heads(settings: Settings) -> Iterator[Comparison]:
    """C1: the heads of a 1.3B RetNet."""
    sizes = settings.size(8, 2), settings.size(256, 16), settings.size(512, 32)
    for dtype in (torch.bfloat16, torch.float32):
        yield compare(settings, *sizes, settings.size(2048, 96), dtype)


def narrow_heads(settings: Settings) -> Iterator[Comparison]:
    """C2: the heads of a small model."""
    sizes = settings.size(4, 2), settings.size(64, 8), settings.size(128, 16)
    for dtype in (torch.bfloat16, torch.float32):
        yield compare(settings, *sizes, settings.size(2048, 96), dtype)
    # four gigabytes of scores: float32 products of them would take most of the case's time
    yield compare(settings, *sizes, settings.size(8192, 160), torch.bfloat16, definition=False)


CASES = (
    Case("c0", "ceilings: see the head", lambda settings: ()),
    Case("c1", "retention, wide heads", wide_heads),
    Case("c2", "retention, narrow heads", narrow_heads),
)
