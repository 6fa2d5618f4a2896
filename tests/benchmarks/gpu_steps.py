"""G8 and G9: on a GPU, the loss after its product and the optimizer's one pass, at the sizes of a
1.3B model. Not here: whole steps.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor

from retnet.kernels.linear_cross_entropy import linear_cross_entropy
from tests.benchmarks.gpu import DEVICE, ours, peak, peer, random
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

CHUNK = 8192
"Tokens whose logits are there at once."
NUMBERS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss from all logits."""
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def differentiated(loss: Callable, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The loss of hidden, weight and targets, and its gradients by the first two."""
    leaves = [x.detach().requires_grad_() for x in inputs[:2]]
    value = loss(*leaves, inputs[2])
    return value.detach(), *torch.autograd.grad(value, leaves)


def losses(settings: Settings) -> Iterator[Comparison]:
    """G8: linear and cross entropy, forward and backward; peak memory where there is a GPU."""
    tokens, width = settings.size(65536, 12), settings.size(2048, 16)
    liger = peer("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    fla = peer("fla.modules.fused_linear_cross_entropy", "fused_linear_cross_entropy_loss")

    rows = ours("cross_entropy", "cross_entropy_rows")
    in_triton = partial(linear_cross_entropy, rows_operator=rows)
    runs = {
        "ours, rows in Triton": partial(differentiated, in_triton),
        "ours, plain torch": partial(differentiated, linear_cross_entropy),
        "torch, all logits": partial(differentiated, plain),
    }
    if liger:
        runs["liger"] = partial(differentiated, lambda h, w, t: liger(h, w, t, reduction="sum"))
    if fla:
        runs["fla"] = partial(differentiated, lambda h, w, t: fla(h, t, w, reduction="sum"))

    @cache
    def truth(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return differentiated(plain, hidden[:CHUNK].double(), weight.double(), targets[:CHUNK])

    def check(run: Callable, inputs: tuple, outputs: tuple) -> float:
        """Of the first tokens: float64 logits of all would not fit."""
        del outputs
        hidden, weight, targets = inputs
        return relative_error(run(hidden[:CHUNK], weight, targets[:CHUNK]), truth(*inputs))

    for vocabulary in (settings.size(32000, 50), settings.size(100_352, 70)):

        def draw(vocabulary: int = vocabulary) -> tuple[Tensor, ...]:
            targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
            return random(tokens, width), random(vocabulary, width) * width**-0.5, targets

        contenders = {
            name: Contender(run, name.startswith("ours"), partial(check, run),
                            work=6.0 * tokens * width * vocabulary)
            for name, run in runs.items()
        }  # fmt: skip
        title = f"{tokens} tokens of {width}, vocabulary {vocabulary}"
        yield Comparison(title, contenders, draw, "bfloat16", device=DEVICE.type)
        if DEVICE.type == "cuda":
            weighed = {
                name: Contender(partial(peak, run), base=name.startswith("ours"))
                for name, run in runs.items()
            }
            yield Comparison(f"{title}: peak beyond the inputs", weighed, draw, unit="MiB")


def optimizer(settings: Settings) -> Iterator[Comparison]:
    """G9: AdamW with clipping on one flat tensor: bfloat16 gradients and weights, float32 state."""
    count = settings.size(1_340_000_000 // 16 * 16, 4096)
    step = ours("adamw", "adamw_step")
    state = [torch.zeros(count, device=DEVICE) for _ in range(3)]
    low = torch.zeros(count, device=DEVICE, dtype=torch.bfloat16)
    leaf = torch.nn.Parameter(torch.zeros(count, device=DEVICE))
    betas = NUMBERS["beta1"], NUMBERS["beta2"]
    rest = {name: NUMBERS[name] for name in ("lr", "eps", "weight_decay")}
    theirs = torch.optim.AdamW([leaf], betas=betas, fused=True, **rest)

    def afresh(gradient: Tensor) -> None:
        for tensor in (*state, leaf.data):
            tensor.zero_()
        theirs.state.clear()

    def one_pass(gradient: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        coefficient = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        first = torch.ones((), device=DEVICE)
        parameter, *moments = state
        step(parameter, gradient, *moments, low, step=first, coefficient=coefficient,
             not_finite=~norm.isfinite(), **NUMBERS)  # fmt: skip
        return parameter

    def plain(gradient: Tensor) -> Tensor:
        leaf.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_([leaf], 1.0)
        theirs.step()
        low.copy_(leaf.detach())
        return leaf.detach()

    def check(inputs: tuple, outputs: Tensor) -> float:
        """Of the first update, which is lr g / (|g| + eps) where weights are zero."""
        gradient = inputs[0]
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        clipped = gradient[: 2**20].double() / norm.clamp(min=1.0)
        right = -NUMBERS["lr"] * clipped / (clipped.abs() + NUMBERS["eps"])
        return relative_error([outputs[: 2**20]], [right])

    contenders = {
        "ours, one pass": Contender(one_pass, True, check, afresh, work=30.0 * count),
        "torch AdamW fused, clip_grad_norm_": Contender(plain, False, check, afresh,
                                                        work=30.0 * count),
    }  # fmt: skip
    title = f"{count:,} weights; ceiling: 30 bytes a weight at the speed of a copy"
    draw = lambda: (random(count),)  # noqa: E731
    yield Comparison(title, contenders, draw, "copy", device=DEVICE.type)


CASES = (
    Case("g8", "linear and cross entropy", losses, minutes=1.5),
    Case("g9", "optimizer's pass", optimizer),
)
