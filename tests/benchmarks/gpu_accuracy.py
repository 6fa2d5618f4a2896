"""G17: on a GPU, how far retention is from float64, beside plain torch in the same dtype and fla,
and whether three runs are bitwise equal: outputs, states and every gradient, at shapes that do not
fit into tiles, with and without documents, and one token after the other.

Small and quick, so that it comes first. At toy sizes it is what a memory checker can follow:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \\
        python -m tests.benchmarks g17 --quick        (and --tool racecheck)

Every shape comes in bfloat16, the first ones and the recurrent ones in every dtype. Not here: time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.kernels import Backend, reference
from tests.benchmarks.goals import Goal
from tests.benchmarks.gpu import DEVICE, peer
from tests.benchmarks.gpu_workloads import (
    NUCLEUS,
    OURS,
    PLAIN,
    SMALL,
    WIDE,
    Heads,
    chosen,
    chunk_size,
    decays,
    pack,
)
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error

RUNS = 3
NAMES = ("o", "state", "dq", "dk", "dv", "dstate")
# Products of bfloat16 are wrong in Triton's interpreter.
DTYPES = (torch.float32, torch.float16)
if DEVICE.type == "cuda":
    DTYPES = (torch.bfloat16, *DTYPES)


class Shape(NamedTuple):
    """What is computed, always from a state and to a state."""

    batch: int
    time: int
    heads: Heads
    documents: bool = False
    "With several documents in a row, and masked tokens."
    recurrent: bool = False
    "One token after the other, without gradients."

    @property
    def title(self) -> str:
        number, key, value = self.heads
        extra = ", documents and a mask" if self.documents else ""
        form = "recurrent" if self.recurrent else "chunkwise"
        return f"{form}, {self.batch} x {self.time:,}, {number} heads of {key} / {value}{extra}"


SHAPES = (
    Shape(2, 1000, WIDE),
    Shape(3, 777, WIDE, documents=True),
    Shape(1, 65_536, WIDE),
    Shape(2, 1000, NUCLEUS),
    Shape(1, 1000, Heads(4, 256, 428)),
    Shape(2, 1000, SMALL[0]),
    Shape(2, 1000, SMALL[1]),
    Shape(2, 333, Heads(4, 160, 320), documents=True),
    Shape(8, 1, WIDE, recurrent=True),
    Shape(5, 3, NUCLEUS, documents=True, recurrent=True),
)
TOYS = (
    Shape(1, 21, Heads(2, 16, 27), documents=True),
    Shape(2, 3, Heads(2, 16, 27), documents=True, recurrent=True),
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of one call and its backward pass; in one dtype, but for the state's and its gradient's."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    do: Tensor
    dstate: Tensor
    segment_start: Tensor | None
    mask: Tensor | None

    def double(self) -> list[Tensor]:
        """The six that are numbers."""
        return [x.double() for x in (self.q, self.k, self.v, self.state, self.do, self.dstate)]


def draw(shape: Shape, dtype: torch.dtype) -> tuple[Inputs]:
    """Fresh ones."""
    batch, time, (heads, key, value), documents, _ = shape
    widths = key, key, value, value
    q, k, v, do = (torch.randn(batch, time, heads, w, device=DEVICE).to(dtype) for w in widths)
    state, dstate = torch.randn(2, batch, heads, key, value, device=DEVICE).unbind()
    segment_start = mask = None
    if documents:
        segment_start = pack(time, time / 5)[0].repeat(batch, 1)
        first = segment_start == 0
        segment_start[first] = -7  # the state's document goes on
        mask = torch.rand(batch, time, device=DEVICE) > 0.1
    return (Inputs(q * key**-0.5, k, v, state, do, dstate, segment_start, mask),)


def compute(
    operator: Callable, recurrent: bool, numbers: list[Tensor], given: Inputs
) -> list[Tensor]:
    """What NAMES says, of the six `numbers`, which may be wider than those of `given`."""
    *leaves, do, dstate = numbers
    asked = {}
    if given.segment_start is not None:
        asked = {"segment_start": given.segment_start, "mask": given.mask}
    if recurrent:
        with torch.no_grad():
            return list(operator(*leaves, **asked))
    leaves = [x.detach().requires_grad_() for x in leaves]
    found = operator(*leaves, **asked)
    gradients = torch.autograd.grad(found, leaves, (do, dstate))
    return [x.detach() for x in (*found, *gradients)]


class Trial:
    """One implementation at one shape: the figure is its largest relative error, the remark every
    error, and whether runs differ, which of ours makes the error infinite."""

    def __init__(self, operator: Callable, recurrent: bool, truth: Callable, ours: bool) -> None:
        self.operator, self.recurrent, self.truth, self.ours = operator, recurrent, truth, ours
        self.said = ""

    def run(self, given: Inputs) -> float:
        numbers = [given.q, given.k, given.v, given.state, given.do, given.dstate]
        first, *again = (
            compute(self.operator, self.recurrent, numbers, given) for _ in range(RUNS)
        )
        same = all(torch.equal(a, b) for other in again for a, b in zip(first, other, strict=True))
        errors = [relative_error([a], [b]) for a, b in zip(first, self.truth(given), strict=True)]
        each = ", ".join(f"{n} {e:.1e}" for n, e in zip(NAMES, errors, strict=False))
        self.said = f"{each}; {RUNS} runs {'bitwise equal' if same else 'DIFFER'}"
        return max(errors) if same or not self.ours else float("inf")

    def remark(self) -> str:
        return self.said


def operators(shape: Shape, settings: Settings) -> dict[str, Callable]:
    """Ours, plain torch, and fla where it can do what the shape says: operators that take q, k, v,
    state and return o and the state."""
    log_decay, size = decays(shape.heads), chunk_size(shape.heads, settings)
    found = {}
    for name, backend in ((OURS, Backend.triton), (PLAIN, Backend.torch)):
        kernels = chosen(backend)
        if shape.recurrent:
            retain = kernels.retention_recurrent
        else:
            retain = partial(kernels.retention_chunkwise, chunk_size=size)
        found[name] = lambda q, k, v, state, retain=retain, **asked: retain(
            q, k, v, log_decay, state, **asked
        )
    if find_spec("fla") is not None and not shape.documents:
        names = {"fla, recurrent": ("fused_recurrent_retention", {})}
        if not shape.recurrent:
            names = {
                f"fla, chunk {chunk}": ("chunk_retention", {"chunk_size": chunk})
                for chunk in (64, 128)
            } | {"fla, fused chunk": ("fused_chunk_retention", {})}
        for name, (function, sizes) in names.items():
            found[name] = lambda q, k, v, state, function=function, sizes=sizes: peer(
                "fla.ops.retention", function
            )(q, k, v, scale=1.0, initial_state=state, output_final_state=True, **sizes)
    return found


def dtypes(shape: Shape, index: int, settings: Settings) -> tuple[torch.dtype, ...]:
    """In which the shape comes: compiling takes longer than checking."""
    if settings.quick:
        return DTYPES[index % 2 : index % 2 + 1]
    return DTYPES if index < 2 or shape.recurrent else DTYPES[:1]


def judge(shape: Shape) -> Callable[[Inputs], list[Tensor]]:
    """What float64 makes of inputs, by the definition; made once for everybody."""
    log_decay = decays(shape.heads).double()
    form = reference.retention_recurrent
    if not shape.recurrent:
        form = partial(reference.retention_chunkwise, chunk_size=256)

    def define(q: Tensor, k: Tensor, v: Tensor, state: Tensor, **asked: Tensor) -> tuple:
        return form(q, k, v, log_decay, state, **asked)

    return cache(lambda given: compute(define, shape.recurrent, given.double(), given))


def accuracy(settings: Settings) -> Iterator[Comparison]:
    """G17: the errors of everybody, at every shape and in every dtype."""
    for index, shape in enumerate(TOYS if settings.quick else SHAPES):
        truth = judge(shape)
        for dtype in dtypes(shape, index, settings):
            contenders = {}
            for name, operator in operators(shape, settings).items():
                trial = Trial(operator, shape.recurrent, truth, name == OURS)
                contenders[name] = Contender(trial.run, name == OURS, remark=trial.remark)
            yield Comparison(
                f"{shape.title}, {str(dtype).removeprefix('torch.')}",
                contenders,
                partial(draw, shape, dtype),
                unit="error",
                device=DEVICE.type,
                standard=PLAIN,
                poisoned=True,
                goals=(Goal(OURS, times={PLAIN: 0.5, "fla": 1.0}),),
            )


CASES = (Case("g17", "retention: accuracy and determinism", accuracy, minutes=2.0),)
