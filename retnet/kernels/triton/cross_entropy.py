"""Cross entropy of rows of logits and its gradient in their place, one Triton program a row: what
happens to a chunk of logits between the matrix products of
`retnet/kernels/linear_cross_entropy.py`, which defines the terms. Not here: those products.

    log_z = log sum exp(x),   loss = log_z - (1 - s) x_target - s mean(x) + z log_z^2
    dx = softmax(x) (1 + 2 z log_z) - (1 - s) at the target - s / V
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.kernels.linear_cross_entropy import IGNORED
from retnet.kernels.triton.tiles import compute_dtype, launching_on, neighboring

COLUMNS = 4096
"Of a step along a row, at most."


def cross_entropy_rows(
    logits: Tensor, targets: Tensor, z_loss_coeff: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The sum over targets of their losses, a float32 scalar in nats, and its gradient by the
    logits, written over them.

    logits [R, V], overwritten, in their own dtype; targets [R], -100 for rows that do not count.
    Computed in float32 (float64 of float64); the maximum and the sum of exponentials come from one
    reading, the gradient from a second. A float16 gradient loses small probabilities before a loss
    scale reaches them: give float32 logits there. ValueError where shapes do not go together or
    columns are not neighbors.
    """
    if targets.shape != logits.shape[:1] or logits.dim() != 2:
        raise ValueError(
            f"cross_entropy_rows of logits {list(logits.shape)} and targets {list(targets.shape)}: "
            "needed [rows, vocabulary] and [rows]"
        )
    if logits.stride(1) != 1:
        raise ValueError(
            f"cross_entropy_rows of logits with strides {logits.stride()}: needed columns that are "
            "neighbors in memory"
        )
    losses = _cross_entropy_rows(logits, targets, z_loss_coeff, label_smoothing)
    return losses.sum(), logits


@triton.jit
def _kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    stride,
    WIDTH: tl.constexpr,
    Z_LOSS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * stride
    target = tl.load(targets_ptr + row)
    counts = target != IGNORED
    lane = tl.arange(0, BLOCK)
    # Each lane keeps its own maximum and sums; they meet once, at the end of the row.
    largest = tl.full([BLOCK], -3.0e38, dtype=COMPUTE)
    exponentials = tl.zeros([BLOCK], dtype=COMPUTE)
    at_target = tl.zeros([BLOCK], dtype=COMPUTE)
    everything = tl.zeros([BLOCK], dtype=COMPUTE)
    for start in range(0, WIDTH, BLOCK):
        column = start + lane
        mask = column < WIDTH
        x = tl.load(x_ptr + column, mask=mask, other=-float("inf")).to(COMPUTE)
        smaller = tl.exp(-tl.abs(x - largest))  # one exponential, whichever is the larger
        exponentials = tl.where(x > largest, exponentials * smaller + 1, exponentials + smaller)
        largest = tl.maximum(largest, x)
        at_target += tl.where(column == target, x, 0.0)
        if SMOOTHING != 0:
            everything += tl.where(mask, x, 0.0)
    most = tl.max(largest, axis=0)
    total = tl.sum(exponentials * tl.exp(largest - most), axis=0)
    log_z = most + tl.log(total)
    loss = log_z - (1 - SMOOTHING) * tl.sum(at_target, axis=0)
    if SMOOTHING != 0:
        loss -= SMOOTHING * (tl.sum(everything, axis=0) / WIDTH)
    factor = 1 / total
    if Z_LOSS != 0:
        loss += Z_LOSS * log_z * log_z
        factor *= 1 + 2 * Z_LOSS * log_z
    tl.store(losses_ptr + row, tl.where(counts, loss, 0.0))
    for start in range(0, WIDTH, BLOCK):
        column = start + lane
        mask = column < WIDTH
        x = tl.load(x_ptr + column, mask=mask, other=-float("inf")).to(COMPUTE)
        gradient = tl.exp(x - most) * factor - SMOOTHING / WIDTH
        gradient = tl.where(column == target, gradient + (SMOOTHING - 1), gradient)
        gradient = tl.where(counts, gradient, 0.0).to(logits_ptr.dtype.element_ty)
        tl.store(x_ptr + column, gradient, mask=mask)


@torch.library.custom_op("retnet::cross_entropy_rows", mutates_args=("logits",))
def _cross_entropy_rows(
    logits: Tensor, targets: Tensor, z_loss_coeff: float, label_smoothing: float
) -> Tensor:
    """Each row's loss [R]; the logits become their gradient."""
    rows, width = logits.shape
    compute = compute_dtype(logits)
    dtype = torch.float64 if compute == tl.float64 else torch.float32
    losses = logits.new_empty(rows, dtype=dtype)
    with launching_on(logits):
        _kernel[(rows,)](
            logits,
            neighboring(targets),
            losses,
            logits.stride(0),
            WIDTH=width,
            Z_LOSS=z_loss_coeff,
            SMOOTHING=label_smoothing,
            IGNORED=IGNORED,
            BLOCK=min(COLUMNS, triton.next_power_of_2(width)),
            COMPUTE=compute,
            num_warps=8,
        )
    return losses


@_cross_entropy_rows.register_fake
def _(logits: Tensor, targets: Tensor, z_loss_coeff: float, label_smoothing: float) -> Tensor:
    wide = logits.dtype == torch.float64
    return logits.new_empty(logits.shape[0], dtype=torch.float64 if wide else torch.float32)
