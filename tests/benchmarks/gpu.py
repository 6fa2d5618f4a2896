"""G0 and G7: the ceilings of a GPU, and the elementwise operators at the sizes of a 1.3B model.

The cases of a GPU join where there is one, or, to see that they run, in Triton's interpreter at toy
sizes. Not here: the loss and the optimizer (`gpu_steps.py`), retention, whole layers.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from retnet.kernels import gates, norms, rotation
from retnet.kernels.apex import load_rms_norm, missing_apex
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-6
Tensors = tuple[Tensor, ...]


def runnable() -> bool:
    """Whether there is a GPU, or Triton's interpreter in its place."""
    return DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def ours(module: str, name: str) -> Callable:
    """One of our Triton kernels; imported here, since Triton may be missing elsewhere."""
    return getattr(import_module(f"retnet.kernels.triton.{module}"), name)


def peer(module: str, name: str) -> Callable | None:
    """A function of another library where that is installed."""
    if find_spec(module.partition(".")[0]) is None:
        return None
    return getattr(import_module(module), name)


def peak(run: Callable, *inputs: object) -> float:
    """MiB of the GPU that `run` takes beyond what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(*inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def compiled(operator: Callable, settings: Settings) -> Callable:
    """By torch.compile; a quick run leaves the code generation out."""
    return torch.compile(operator, backend="aot_eager" if settings.quick else "inductor")


def ceilings(settings: Settings) -> Iterator[Comparison]:
    """G0: the products of a 1.3B model's layer and a large square one, and a copy."""
    tokens = settings.size(65536, 64)
    big = settings.size(8192, 128)
    shapes = [(big, big, big), (tokens, 2048, 12288), (tokens, 4096, 2048)]
    shapes += [(tokens, 2048, 6912), (tokens, 3456, 2048)]
    for rows, inner, columns in shapes:
        if settings.quick:
            inner, columns = inner // 64, columns // 64
        flops = 2.0 * rows * inner * columns
        contenders = {
            "x @ w": Contender(lambda x, w, transposed: x @ w, base=True, work=flops),
            "x @ w.T": Contender(lambda x, w, transposed: x @ transposed.T, work=flops),
        }

        def draw(rows: int = rows, inner: int = inner, columns: int = columns) -> tuple:
            w = random(inner, columns)
            return random(rows, inner), w, w.T.contiguous()

        title = f"[{rows}, {inner}] times [{inner}, {columns}], bfloat16"
        yield Comparison(title, contenders, draw, "bfloat16", device=DEVICE.type)
    size = settings.size(2**30, 2**16)
    contenders = {
        "copy_": Contender(lambda x, y: y.copy_(x), base=True, work=4.0 * size),
        "clone": Contender(lambda x, y: x.clone(), work=4.0 * size),
    }
    draw = lambda: (random(size), random(size))  # noqa: E731
    yield Comparison(f"copy of {size:,} bfloat16", contenders, draw, "copy", device=DEVICE.type)


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def compare(
    title: str,
    operators: dict[str, Callable | None],
    draw: Callable[[], tuple[Tensors, Tensors]],
    settings: Settings,
) -> Iterator[Comparison]:
    """Forward alone, and with backward. operators: ours first, then plain torch, which is the
    definition in float64; those that are None are not installed. draw: inputs that want gradients,
    and gradients of the outputs. `work`: each tensor read or written once in each direction."""
    parts = settings.size(10, 1)
    operators = {name: operator for name, operator in operators.items() if operator is not None}
    definition = operators["plain torch"]

    def forward(operator: Callable, inputs: Tensors, grads: Tensors) -> tuple:
        with torch.no_grad():
            for _ in range(parts):
                outputs = as_tuple(operator(*inputs))
        return outputs

    def both(operator: Callable, inputs: Tensors, grads: Tensors) -> tuple:
        for _ in range(parts):
            leaves = [x.detach().requires_grad_() for x in inputs]
            outputs = as_tuple(operator(*leaves))
            found = torch.autograd.grad(outputs, leaves, grads)
        return *(y.detach() for y in outputs), *found

    inputs, taken = (sum(x.nbytes for x in tensors) for tensors in draw())
    once = float(inputs + taken)
    # backward reads inputs and output gradients and writes input gradients
    for name, run, work in (
        ("forward", forward, once),
        ("forward and backward", both, 2 * once + inputs),
    ):
        check = judge(partial(run, definition))
        contenders = {
            key: Contender(partial(run, operator), key == "ours, Triton", check, None, parts, work)
            for key, operator in operators.items()
        }
        yield Comparison(f"{title}, {name}", contenders, draw, "copy", device=DEVICE.type)


def judge(definition: Callable) -> Callable[[tuple, tuple], float]:
    """A check against what `definition` makes of the same inputs in float64, made once for all."""

    @cache
    def truth(inputs: tuple[tuple[Tensor, ...], ...]) -> tuple[Tensor, ...]:
        outputs = definition(*(tuple(x.double() for x in tensors) for tensors in inputs))
        return tuple(x.float() for x in outputs)  # half the memory, and far beyond bfloat16

    return lambda inputs, outputs: relative_error(outputs, truth(inputs))


def elementwise(settings: Settings) -> Iterator[Comparison]:
    """G7: each operator that is one pass over memory, beside plain torch and whoever is there."""
    tokens = settings.size(65536, 6)
    width, heads, inner = (settings.size(*pair) for pair in ((2048, 40), (8, 2), (3456, 36)))
    per_head, keys = settings.size(512, 20), settings.size(256, 16)
    weight = torch.ones(width, device=DEVICE, dtype=torch.bfloat16)

    def contenders(module: str, plain: Callable, *constants: object, **peers: Callable | None):
        name = plain.__name__
        named = {"ours, Triton": ours(module, name), "plain torch": plain}
        named["plain torch, compiled"] = compiled(plain, settings)
        bound = {key: lambda *x, f=f: f(*x, *constants) for key, f in named.items()}
        return bound | peers

    liger = peer("liger_kernel.transformers.functional", "liger_rms_norm")
    apex = None if missing_apex(DEVICE) else load_rms_norm()
    others = {
        "liger": liger and (lambda x, w: liger(x, w, EPS, in_place=False)),
        "apex": apex and (lambda x, w: apex(x, w, EPS)),
    }
    operators = contenders("norms", norms.rms_norm, EPS, **others)
    draw = lambda: ((random(tokens, width), weight), (random(tokens, width),))  # noqa: E731
    yield from compare(f"RMSNorm of {width}", operators, draw, settings)

    def two() -> tuple[Tensors, Tensors]:
        x, branch, *grads = random(4, tokens, width)
        return (x, branch, weight), tuple(grads)

    operators = contenders("norms", norms.add_rms_norm, EPS)
    yield from compare(f"x + branch and RMSNorm of {width}", operators, two, settings)

    def gated() -> tuple[Tensors, Tensors]:
        gate, grad = random(2, 1, tokens, heads * per_head)
        return (random(1, tokens, heads, per_head), gate), (grad,)

    fla = peer("fla.modules", "FusedRMSNormGated")
    module = fla and fla(per_head, elementwise_affine=False, eps=EPS, device=DEVICE)
    others = {"fla": module and (lambda x, g: module(x, g.view_as(x)).flatten(-2))}
    operators = contenders("gated_norm", norms.gated_rms_norm, None, EPS, **others)
    title = f"head norm and gate, {heads} heads of {per_head}"
    yield from compare(title, operators, gated, settings)

    def halves() -> tuple[Tensors, Tensors]:
        return tuple(random(tokens, 2 * inner).chunk(2, -1)), (random(tokens, inner),)

    others = {"liger": peer("liger_kernel.transformers.functional", "liger_swiglu")}
    operators = contenders("gates", gates.swiglu, **others)
    yield from compare(f"SwiGLU of {inner}", operators, halves, settings)

    angle = torch.rand(1, tokens, 1, keys // 2, device=DEVICE)
    tables = angle.cos(), angle.sin(), torch.rand(1, tokens, heads, 1, device=DEVICE), True

    def turned() -> tuple[Tensors, Tensors]:
        x, grad = random(2, 1, tokens, heads, keys)
        return (x,), (grad,)

    operators = contenders("rotation", rotation.rotate, *tables)
    yield from compare(f"rotation of {heads} heads of {keys}", operators, turned, settings)


CASES = (
    Case("g0", "ceilings of the GPU", ceilings),
    Case("g7", "elementwise operators", elementwise, minutes=2.5),
)
