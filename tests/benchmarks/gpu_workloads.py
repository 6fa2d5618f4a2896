"""The work that retention is measured at on a GPU: shapes, fresh inputs, what float64 makes of it,
and ours and plain torch's operators through the seam.

Not here: comparisons (`gpu_retention.py`), other libraries (`gpu_peers.py`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.kernels import Backend, Kernels, KernelsConfig, reference, select_kernels
from tests.benchmarks import roofline
from tests.benchmarks.gpu import DEVICE
from tests.benchmarks.gpu_peers import Operator
from tests.benchmarks.measure import Settings

TOKENS = 65_536
# Products of bfloat16 are wrong in Triton's interpreter.
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
OURS, PLAIN = "ours, Triton", "plain torch"


class Heads(NamedTuple):
    """How many, and their widths."""

    number: int
    key: int
    value: int

    def toy(self) -> "Heads":
        """A small shape that is as uneven."""
        return Heads(2, self.key // 16, self.value // 16)


WIDE, NUCLEUS = Heads(8, 256, 512), Heads(16, 256, 432)
SMALL = Heads(16, 64, 128), Heads(16, 128, 256)


class Workload(NamedTuple):
    """What one call computes."""

    batch: int
    time: int
    heads: Heads
    both: bool
    "Forward and backward; else forward alone."

    @property
    def title(self) -> str:
        heads, passes = self.heads, "forward and backward" if self.both else "forward"
        widths = f"{heads.number} heads of {heads.key} / {heads.value}"
        return f"{passes}, {self.batch} x {self.time:,}, {widths}"

    @property
    def phases(self) -> tuple[roofline.Work, ...]:
        """What each pass needs at least."""
        chunk, number = roofline.chunk_of(self.heads.key), self.batch * self.time
        passes = (roofline.forward, roofline.backward) if self.both else (roofline.forward,)
        shape = chunk, self.heads.key, self.heads.value, DTYPE.itemsize
        return tuple(work(*shape) * (number * self.heads.number) for work in passes)


def chosen(backend: Backend) -> Kernels:
    """The seam's operators with retention from one backend."""
    return select_kernels(KernelsConfig(retention=backend), DEVICE)


def decays(heads: Heads) -> Tensor:
    """log gamma_h = log(1 - 2^(-5-h)), float32 [H]."""
    exponents = -5.0 - torch.arange(heads.number, dtype=torch.float64, device=DEVICE)
    return torch.log1p(-(2.0**exponents)).float()


def chunk_size(heads: Heads, settings: Settings) -> int:
    return settings.size(roofline.chunk_of(heads.key), 16)


def ours(
    heads: Heads, settings: Settings, segment_start: Tensor | None = None
) -> dict[str, Operator]:
    """The Triton kernels and plain torch through the seam."""
    log_decay, size = decays(heads), chunk_size(heads, settings)

    def run(kernels: Kernels, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        retain, asked = kernels.retention_chunkwise, {"chunk_size": size, "return_state": False}
        return retain(q, k, v, log_decay, segment_start=segment_start, **asked)[0]

    named = {OURS: Backend.triton, PLAIN: Backend.torch}
    return {name: Operator(partial(run, chosen(backend))) for name, backend in named.items()}


def definition(heads: Heads, segment_start: Tensor | None, *inputs: Tensor) -> Tensor:
    """o by the reference, in the inputs' dtype."""
    asked = {"chunk_size": 256, "return_state": False}
    retain = reference.retention_chunkwise
    return retain(*inputs, decays(heads).double(), segment_start=segment_start, **asked)[0]


def passes(run: Callable[..., Tensor], both: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
    """o of q, k, v and, where `both`, the gradients that do, the last of inputs, gives them."""
    if not both:
        with torch.no_grad():
            return (run(*inputs[:3]),)
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    o = run(*leaves)
    return (o.detach(), *torch.autograd.grad(o, leaves, inputs[3]))


def judge(
    workload: Workload, segment_start: Tensor | None = None
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """What float64 makes of inputs; made once for all contenders, and kept in float32."""
    run = partial(definition, workload.heads, segment_start)

    @cache
    def truth(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wide = [x.double() for x in inputs]
        return tuple(x.float() for x in passes(run, workload.both, *wide))

    return truth


def draw(workload: Workload) -> tuple[Tensor, ...]:
    """q, k, v, do: fresh, with scores of about one."""
    heads = workload.heads
    shape = workload.batch, workload.time, heads.number

    def normal(width: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, width, device=DEVICE) * scale).to(DTYPE)

    scaled = normal(heads.key, heads.key**-0.5)
    return scaled, normal(heads.key), normal(heads.value), normal(heads.value)


def sized(settings: Settings, heads: Heads, time: int, both: bool) -> Workload:
    """`TOKENS` tokens in rows of `time`, or a toy of that."""
    if settings.quick:
        time = 32 if time == TOKENS else 16
        return Workload(32 // time, time, heads.toy(), both)
    return Workload(TOKENS // time, time, heads, both)


def pack(time: int, mean: float) -> tuple[Tensor, Tensor]:
    """Documents of lognormal lengths: segment_start [1, T] int32, and where each begins, with the
    end at the end (cu_seqlens), int64. The same ones every time."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(time).log_normal_(-0.5, 1.0, generator=generator) * mean
    ends = lengths.clamp(min=1).long().cumsum(0)
    begins = torch.cat((torch.zeros(1, dtype=torch.long), ends[ends < time]))
    index = torch.searchsorted(begins, torch.arange(time), right=True) - 1
    edges = torch.cat((begins, torch.tensor([time])))
    return begins[index][None].to(DEVICE, torch.int32), edges.to(DEVICE)
