"""The language modeling loss."""

import torch
from torch import Tensor


def causal_lm_loss(
    logits: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    z_loss_coeff: float = 0.0,
) -> Tensor:
    """Cross entropy in nats, plus z_loss_coeff * logsumexp(logits)^2 (arXiv:2204.02311, section 5),
    in float32.

    logits [B, T, vocabulary], targets [B, T] with -100 for positions that do not count. The sum
    over targets divided by `num_items_in_batch`, or by their number (a batch without targets gives
    0).
    """
    logits = logits.flatten(0, -2).float()
    targets = targets.flatten().to(logits.device)
    total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    if z_loss_coeff:
        total = total + z_loss_coeff * (logits.logsumexp(-1).square() * (targets != -100)).sum()
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum().clamp(min=1)
    return total / num_items_in_batch
