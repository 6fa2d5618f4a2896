"""The output head and its loss in one: the logits of a few rows at a time, never all of them.

A vocabulary's logits are the largest tensor of a training step, and they are needed for no longer
than it takes to turn them into their own gradient. Not here: the loss from logits
(`retnet/models/loss.py`), which defines what is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**24  # 32 MiB in bfloat16
FLOATS_IN_CACHE = 2**18
IGNORED = -100
"""The target of a row that does not count, torch's convention."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss_coeff: float = 0.0,
    label_smoothing: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
    rows_operator: Callable | None = None,
) -> Tensor:
    """The sum over targets of the cross entropy of hidden @ weight^T, a float32 scalar, in nats.

    hidden [N, D], weight [V, D], targets [N] with -100 for rows that do not count; z_loss_coeff and
    label_smoothing as in the loss from logits. Products run in hidden's dtype, the rest in float32;
    the weight's gradient is summed in float32. Where gradients are on, both are made at once,
    while the logits are there, by `rows_operator`: `cross_entropy_rows` or a kernel like it.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    rows = max(1, logits_at_once // len(weight))
    terms = _Terms(z_loss_coeff, label_smoothing)
    if wanted:
        operator = rows_operator or cross_entropy_rows
        return _LinearCrossEntropy.apply(hidden, weight, targets, terms, rows, operator)
    total = hidden.new_zeros((), dtype=torch.float32)
    for piece in _pieces(len(hidden), rows):
        logits = (hidden[piece] @ weight.T).float()
        total += _loss(logits, targets[piece], terms)
    return total


class _Terms(NamedTuple):
    z_loss_coeff: float
    label_smoothing: float


def _pieces(length: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, length, rows)]


def _loss(logits: Tensor, targets: Tensor, terms: _Terms) -> Tensor:
    """The sum over targets [R] of their losses; logits [R, V] in float32."""
    log_z = logits.logsumexp(-1)
    at_target = logits.gather(-1, targets.clamp(min=0)[:, None]).squeeze(-1)
    loss = log_z - (1 - terms.label_smoothing) * at_target
    if terms.label_smoothing:
        loss = loss - terms.label_smoothing * logits.mean(-1)
    loss = loss + terms.z_loss_coeff * log_z.square()
    return loss.masked_fill(targets == IGNORED, 0).sum()


def cross_entropy_rows(
    logits: Tensor, targets: Tensor, z_loss_coeff: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The sum over targets [R] of their losses, and its gradient by logits [R, V] in their place,

        softmax (1 + 2 z log_z) - (1 - s) at the target - s / V,

    with z and s for z_loss_coeff and label_smoothing. Both come from one pass over the logits, a
    few rows at a time in float32, so that on a CPU they stay in its cache.
    """
    smoothing, z_loss = label_smoothing, z_loss_coeff
    vocabulary = logits.shape[-1]
    total = logits.new_zeros((), dtype=torch.float32)
    few = len(logits)
    if logits.device.type == "cpu":
        few = max(16, FLOATS_IN_CACHE // vocabulary)
    for piece in _pieces(len(logits), few):
        x, target = logits[piece].float(), targets[piece, None]  # [r, V], [r, 1]
        counts = target != IGNORED
        target = target.clamp(min=0)
        at_target, top = x.gather(-1, target), x.amax(-1, keepdim=True)
        loss = -(1 - smoothing) * at_target
        if smoothing:
            loss = loss - smoothing * x.mean(-1, keepdim=True)
        z = x.sub_(top).exp_().sum(-1, keepdim=True)
        log_z = z.log() + top
        loss = loss + log_z + z_loss * log_z.square()
        total += loss.masked_fill(~counts, 0).sum()
        x.mul_((1 + 2 * z_loss * log_z) / z)
        if smoothing:
            x.sub_(smoothing / vocabulary)
        x.scatter_add_(-1, target, (smoothing - 1.0) * counts)
        logits[piece] = x.masked_fill_(~counts, 0)  # also where it is not finite
    return total, logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        terms: _Terms,
        rows: int,
        operator: Callable,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        # float16 would lose the small probabilities before the loss scale reaches them
        dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        for piece in _pieces(len(hidden), rows):
            logits = (hidden[piece] @ weight.T).to(dtype)  # [rows, V]
            loss, gradient = operator(logits, targets[piece], *terms)
            total += loss
            grad_hidden[piece] = gradient @ weight.to(dtype)
            if grad_weight is not None:
                grad_weight += gradient.T @ hidden[piece].to(dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_hidden = (grad_hidden * grad).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.dtype)
        return grad_hidden, grad_weight, None, None, None, None
