"""What one device holds at the fullest moment of a training step, by part and by ZeRO stage.

A step is full at four moments: at the end of the forward pass, with all activations; in the
backward pass, where a block's activations are made again; at its end, with all gradients and the
messages that carry them; and in the update. What is always there is counted once, and of the rest
the fullest moment. Each count is what DeepSpeed 0.19 was seen to hold, on a CPU and one rank
(tests/retnet/plan/test_memory.py). Not counted: the process itself, CUDA's context, and what the
allocator cannot use, for which `SHARE_OF_DEVICE` leaves room.
"""

from typing import NamedTuple

import torch

from retnet.plan.skeleton import Kept
from retnet.training.recompute import KEPT_COMPILED

SHARE_OF_DEVICE = 0.92
"""Of a device's memory, what a step may fill."""
LOGITS_AT_ONCE = 2**24
REDUCED_AT_ONCE = 500_000_000
"""Elements of the messages of stage 0, DeepSpeed's own."""
LIVE_AT_ONCE = 1_000_000_000
"""Weights that stage 3 leaves gathered on a device, DeepSpeed's own limit."""
FLOAT = 4


class Layout(NamedTuple):
    """How a step's tensors lie on the devices."""

    stage: int
    dtype: torch.dtype
    world_size: int
    reduce_bucket: int
    """Elements."""
    gather_bucket: int
    """Elements."""
    accumulates: bool = False
    """A step has several micro-batches: gradients are there in a forward pass."""
    overlaps: bool = False
    """There are two buckets of gradients at a time."""
    offloads: bool = False
    """Masters, moments and sums are in host memory."""
    compiled: bool = False
    reserves: bool = True
    """Buckets take their memory whole, as on a GPU; false: as far as they are written to."""


class Load(NamedTuple):
    """What a micro-batch makes."""

    rows: int
    tokens: int
    """Of all rows."""
    kept: Kept
    """By the forward pass, as the run is to keep it."""
    kept_whole: Kept
    """The same where nothing is made again."""
    vocabulary: int
    width: int
    """Of the residual stream."""
    logits_width: int
    """Bytes of one logit, the copy in float32 included where there is one."""


class Memory(NamedTuple):
    """Bytes on one device; `total` is the fullest moment, and less than the sum of the parts."""

    weights: float
    gradients: float
    """In the module's dtype and as float32 sums."""
    optimizer: float
    """Float32 masters and two moments."""
    buckets: float
    """Messages between ranks, and at stage 3 gathered weights."""
    activations: float
    recompute: float
    """One block's activations, made again."""
    logits: float
    """Of as many rows as are made at once, with the head's gradient from them."""
    total: float


def device_memory_of(parameters: int, load: Load, to: Layout) -> Memory:
    """The memory of a step of a model with so many parameters."""
    compiled = KEPT_COMPILED if to.compiled else 1.0
    # The compiler spares of what it may choose; what a policy names is kept in its graphs, too.
    spared = compiled if load.kept == load.kept_whole else 1.0
    activations = load.kept.of(load.rows) * spared
    recompute = max(0, load.kept_whole.layer - load.kept.layer) * load.rows * compiled
    logits = _logits(load, to.dtype.itemsize)
    weights = parameters * to.dtype.itemsize / _ranks(to, 3)
    optimizer = _optimizer(parameters, to)
    standing, held_over, reduced, updated = _gradients(parameters, to)
    lasting, messages = _buckets(parameters, to)
    before = held_over if to.accumulates else 0.0
    moments = (
        activations + logits + before,
        activations + recompute + before,
        held_over + reduced + messages,
        held_over + updated,
    )
    return Memory(
        weights,
        standing + held_over + max(reduced, updated),
        optimizer,
        lasting + messages,
        activations,
        recompute,
        logits,
        weights + optimizer + standing + lasting + max(moments),
    )


def _ranks(to: Layout, first_stage: int) -> int:
    """Over how many ranks something is split that is split from a stage on."""
    return to.world_size if to.stage >= first_stage else 1


def _is_float32(to: Layout) -> bool:
    return to.dtype == torch.float32


def _optimizer(parameters: int, to: Layout) -> float:
    if to.offloads:
        return 0.0
    # A float32 module at stage 0 is its own master.
    masters = 0 if to.stage == 0 and _is_float32(to) else 1
    return parameters * FLOAT * (masters + 2) / _ranks(to, 1)


def _gradients(parameters: int, to: Layout) -> tuple[float, float, float, float]:
    """Bytes that are always there; from a step's first backward pass to its end; while a bucket is
    reduced; and while the weights are updated."""
    width = to.dtype.itemsize
    whole, share = parameters * FLOAT, parameters * FLOAT / to.world_size
    lower = min(parameters, to.reduce_bucket) * width
    if to.offloads:
        return 0.0, 0.0, lower, 0.0
    if to.stage == 0 or (to.stage == 1 and _is_float32(to)):
        return 0.0, whole, 0.0, 0.0
    if to.stage == 1:
        return whole, parameters * width, 0.0, 0.0  # the sums, and what is added to them
    if to.stage == 2:
        return 0.0, share, lower, 0.0
    return share, 0.0, 0.0, 2 * share  # DeepSpeed's own update copies twice


def _buckets(parameters: int, to: Layout) -> tuple[float, float]:
    """Bytes of messages that are always there, and only at the end of a backward pass."""
    width = to.dtype.itemsize
    if to.stage == 0:
        return 0.0, min(parameters, REDUCED_AT_ONCE) * FLOAT
    if to.stage == 1 and not _is_float32(to):
        return 0.0, 0.0  # reduced where they lie
    size = to.reduce_bucket if to.reserves else min(parameters, to.reduce_bucket)
    cast = 0 if _is_float32(to) else min(parameters, to.reduce_bucket) * FLOAT
    if to.stage < 3:
        return 0.0, size * width * (2 if to.overlaps else 1) + cast
    gathered = min(parameters, LIVE_AT_ONCE + to.gather_bucket) if to.world_size > 1 else 0
    copies = 1 if _is_float32(to) else 2
    return (size * copies + gathered) * width, cast


def _logits(load: Load, width: int) -> float:
    rows = min(load.tokens, max(1, LOGITS_AT_ONCE // load.vocabulary))
    head = load.vocabulary * load.width * width
    return float(rows * load.vocabulary * load.logits_width + head)
