"""C3, C4, C5 and C11: the multi-scale retention layer beside others' and beside attention.

Weights and inputs are the same for every retention layer, so one float64 computation of the
definition judges them all; what a forward pass computes once for all layers (positions, decays) is
computed before the clock starts, for everybody.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from retnet import RetNetConfig
from retnet.kernels import Kernels, reference, select_kernels
from retnet.models.fused import FusedLinear
from retnet.models.retention import Form, MultiScaleRetention
from retnet.models.rotary import Positions, token_positions
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

CHUNKS = (64, 128, 256)


class RetentionLayer(nn.Module):
    """Ours, with its positions made and its form chosen: x [1, T, D] -> same."""

    def __init__(
        self,
        config: RetNetConfig,
        kernels: Kernels,
        time: int,
        chunk: int,
        dtype: torch.dtype,
        segment_start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.inner = MultiScaleRetention(config, kernels)
        self.form = Form("chunkwise", chunk, return_state=False)
        position = token_positions(time, None, segment_start, None, torch.device("cpu"))
        wide = torch.promote_types(dtype, torch.float32)
        self.positions = Positions.at(position, config, wide, segment_start)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, self.positions, None, self.form)[0]


class AttentionLayer(nn.Module):
    """Causal softmax attention in plain torch, as fast as torch has it: x [1, T, D] -> same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # [1, H, T, D / H]
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(o.transpose(1, 2).flatten(-2))


def run_layer(layer: nn.Module, backward: bool, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """y and, with `backward`, the gradients of x and of the weights in the order of their names;
    fused projections count as the separate ones that they are rows of."""
    with torch.set_grad_enabled(backward):
        x = x.detach().requires_grad_(backward)
        y = layer(x)
    if not backward:
        return (y,)
    names, weights = zip(*layer.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(y, [x, *weights], dy)
    found = dict(zip(names, gradients, strict=True))
    for name, module in layer.named_modules():
        if isinstance(module, FusedLinear):
            parent = name.rpartition(".")[0]
            rows = module.rows(found.pop(f"{name}.weight"))
            found |= {f"{parent}.{part}.weight": value for part, value in rows.items()}
    return (y.detach(), dx, *(gradient for _, gradient in sorted(found.items())))


def layer_config(settings: Settings) -> RetNetConfig:
    """D 512, 4 heads of 128 / 256."""
    return RetNetConfig(
        vocab_size=8,
        decoder_layers=1,
        decoder_embed_dim=settings.size(512, 32),
        decoder_retention_heads=settings.size(4, 2),
        decoder_value_embed_dim=settings.size(1024, 64),
        decoder_ffn_embed_dim=8,
        use_glu=True,  # the published variant whose head norm is an RMSNorm
    )


def initial_weights(config: RetNetConfig) -> dict[str, Tensor]:
    """Weights under which every part of the layer has outputs of order one."""
    weights = MultiScaleRetention(config, select_kernels()).state_dict()  # their public names
    return {name: torch.randn_like(w) * w.shape[1] ** -0.5 for name, w in weights.items()}


def truth_of(layer: nn.Module, backward: bool) -> Callable[[tuple], tuple[Tensor, ...]]:
    """What `layer`, in float64, makes of a contender's inputs; computed once."""

    @cache
    def truth(inputs: tuple) -> tuple[Tensor, ...]:
        return run_layer(layer, backward, *(x.double() for x in inputs))

    return truth


def contender(
    layer: nn.Module, truth: Callable | None, backward: bool, work: float, base: bool = False
) -> Contender:
    """A layer in a comparison; `work` is the forward pass's."""

    def check(inputs: tuple, outputs: tuple[Tensor, ...]) -> float:
        return relative_error(outputs, truth(inputs))

    return Contender(
        partial(run_layer, layer, backward),
        base=base,
        check=check if truth else None,
        work=work * (3 if backward else 1),
    )


def ours(
    config: RetNetConfig,
    weights: dict[str, Tensor],
    time: int,
    dtype: torch.dtype,
    backward: bool,
    chunks: tuple[int, ...] = CHUNKS,
    segment_start: Tensor | None = None,
    again: Callable[[nn.Module], nn.Module] | None = None,
) -> tuple[dict[str, Contender], Callable]:
    """Our layer, a contender for each chunk size, and the truth about it."""

    def build(chunk: int, dtype: torch.dtype, kernels: Kernels) -> RetentionLayer:
        layer = RetentionLayer(config, kernels, time, chunk, dtype, segment_start)
        layer.inner.load_state_dict(weights)
        return layer.to(rounding).to(dtype)

    rounding = dtype  # the truth's weights are what rounding leaves of them
    kernels = select_kernels()
    defined = replace(kernels, retention_chunkwise=reference.retention_chunkwise)
    truth = truth_of(build(128, torch.float64, defined), backward)
    linear = sum(w.numel() for w in weights.values())
    work = time * (2.0 * linear + 4.0 * config.key_dim * config.value_dim)
    found = {}
    for chunk in chunks:
        layer, name = build(chunk, dtype, kernels), f"ours, chunk {chunk}"
        if again:
            layer, name = again(layer), f"{name}, compiled"
        found[name] = contender(layer, truth, backward, work, base=True)
    return found, truth


def compiled(layer: nn.Module, settings: Settings) -> nn.Module:
    """The layer, compiled in place when it first runs; in a quick run without making code of it."""
    layer.compile(dynamic=False, backend="aot_eager" if settings.quick else "inductor")
    return layer


def compare(
    settings: Settings, time: int, dtype: torch.dtype, backward: bool, parallel: bool = True
) -> Comparison:
    """The layer at one length; `parallel`: with the peers that have a T x T matrix in float32."""
    config = layer_config(settings)
    weights, width = initial_weights(config), config.hidden_size
    chunks = CHUNKS if time <= 4096 else CHUNKS[1:]  # at length, turns take seconds
    contenders, truth = ours(config, weights, time, dtype, backward, chunks)
    # Compiling takes seconds for each; it is for training, and bfloat16 is what one trains in.
    compiles = backward and dtype == torch.bfloat16
    if compiles:
        again = partial(compiled, settings=settings)
        contenders |= ours(config, weights, time, dtype, backward, chunks[-2:], again=again)[0]
    work = next(iter(contenders.values())).work / (3 if backward else 1)
    for peer in settings.peers.values():
        layers = peer.layers(config, weights, time, dtype)
        if compiles:
            copies = {name: deepcopy(layer) for name, layer in layers.items()}
            layers |= {f"{n}, compiled": compiled(c, settings) for n, c in copies.items()}
        for name, layer in layers.items():
            if parallel or "parallel" not in name:
                contenders[name] = contender(layer, truth, backward, work)
            if parallel and "parallel" in name:  # ten T x T tensors or so, decays in float32
                contenders[name].memory = 40.0 * config.num_heads * time**2
    attention = AttentionLayer(width, settings.size(8, 2)).to(dtype)
    # In float64 attention itself would take a minute at the longest length.
    own = truth_of(deepcopy(attention).double(), backward) if time <= 4096 else None
    work = time * (8.0 * width**2 + 2.0 * time * width)  # causal: half of the scores
    contenders["SDPA attention"] = contender(attention, own, backward, work)
    if compiles:
        again = compiled(deepcopy(attention), settings)
        contenders["SDPA attention, compiled"] = contender(again, own, backward, work)
    dtype_name = str(dtype).removeprefix("torch.")
    what = "forward and backward" if backward else "forward"
    return Comparison(
        f"{what}, {dtype_name}, T {time}",
        contenders,
        lambda: tuple(torch.randn(1, time, width).to(dtype) for _ in range(2)),
        ceiling=dtype_name,
    )


def at_length(
    settings: Settings,
    real: int,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,),
    parallel: bool = True,
) -> Iterator[Comparison]:
    """C3, C4, C5: forward, and forward and backward."""
    for dtype in dtypes:
        for backward in (False, True):
            yield compare(settings, settings.size(real, 512), dtype, backward, parallel)


def packed(settings: Settings) -> Iterator[Comparison]:
    """C11: what document boundaries cost; documents of 300 tokens on average."""
    config, time = layer_config(settings), settings.size(2048, 512)
    weights = initial_weights(config)
    starts = torch.rand(1, time) < 1 / 300
    starts[:, 0] = True
    segment_start = (starts * torch.arange(time)).cummax(dim=1).values.int()
    for chunk in CHUNKS[1:]:
        shape = config, weights, time, torch.bfloat16, True, (chunk,)
        (alone,), (many,) = (ours(*shape, start)[0].values() for start in (None, segment_start))
        many.base = False
        yield Comparison(
            f"forward and backward, bfloat16, T {time}, chunk {chunk}",
            {"one document": alone, f"{int(starts.sum())} packed documents": many},
            lambda: tuple(torch.randn(1, time, config.hidden_size).bfloat16() for _ in range(2)),
            ceiling="bfloat16",
        )


CASES = (
    Case(
        "c3",
        "retention layer, T 2048",
        partial(at_length, real=2048, dtypes=(torch.bfloat16, torch.float32)),
    ),
    Case("c4", "retention layer, T 4096", partial(at_length, real=4096)),
    Case("c5", "retention layer, T 16384", partial(at_length, real=16384, parallel=False)),
    Case("c11", "retention layer, packed documents", packed),
)
