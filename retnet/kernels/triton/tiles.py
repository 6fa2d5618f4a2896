"""How the elementwise kernels cut rows among programs: tile sizes, grids, the dtype to compute in.

Not here: kernels. The sizes are reasoned, not measured: eight elements a thread, which are 16 bytes
of bfloat16, and in backward passes a few programs for each multiprocessor, each adding up its rows'
share of a weight's gradient in a fixed order: no atomics, and results repeat bit by bit.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
"Of a tile, where rows are narrow enough."
ELEMENTS_PER_WARP = 256
PROGRAMS_PER_MULTIPROCESSOR = 4
PROGRAMS_INTERPRETED = 3
"In Triton's interpreter: few, so that each goes over several tiles."


class Tile(NamedTuple):
    """The part of a matrix that a program holds at once."""

    rows: int
    block: int
    "Columns, a power of two, the last of which may lie outside."
    warps: int


def tile_of_rows(width: int) -> Tile:
    """As many whole rows of `width` elements as make a tile; at least one."""
    block = triton.next_power_of_2(max(width, 1))
    rows = max(1, ELEMENTS // block)
    warps = min(16, max(1, rows * block // ELEMENTS_PER_WARP))
    return Tile(rows, block, warps)


def persistent_programs(device: torch.device, tiles: int) -> int:
    """How many programs share out `tiles` tiles of a backward pass."""
    return max(1, min(tiles, _most_programs(device)))


@cache
def _most_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_INTERPRETED
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return PROGRAMS_PER_MULTIPROCESSOR * processors


def compute_dtype(*tensors: Tensor | None) -> tl.dtype:
    """float64 where one of the tensors is, else float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return tl.float64 if double else tl.float32


def as_rows(x: Tensor) -> Tensor:
    """x [..., D] as [N, D] with neighboring columns, by a view where its strides allow one."""
    return neighboring(x.reshape(x.shape[:-1].numel(), x.shape[-1]))


def as_heads(x: Tensor) -> Tensor:
    """x [..., H, V] as [N, H, V] with neighboring columns, by a view where strides allow one."""
    return neighboring(x.reshape(x.shape[:-2].numel(), *x.shape[-2:]))


def neighboring(x: Tensor) -> Tensor:
    """x itself where its last dimension has stride 1, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def launching_on(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device: makes it that of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
