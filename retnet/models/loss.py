"""The language modeling loss: the same in training and in evaluation."""

import torch
from torch import Tensor

from retnet.kernels.linear_cross_entropy import IGNORED


def causal_lm_loss(
    logits: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    z_loss_coeff: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy in nats plus z_loss_coeff * logsumexp(logits)^2 (arXiv:2204.02311, section 5),
    in float32.

    logits [B, T, vocabulary], targets [B, T] with -100 for positions that do not count.
    label_smoothing: the share of a target's probability that is spread evenly over the vocabulary
    (arXiv:1512.00567, section 7). The sum over targets divided by `num_items_in_batch`, or by their
    number. A batch without targets gives 0.
    """
    logits = logits.flatten(0, -2).float()
    targets = targets.flatten().to(logits.device)
    total = torch.nn.functional.cross_entropy(
        logits,
        targets,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if z_loss_coeff:
        log_z = logits.logsumexp(-1).masked_fill(targets == IGNORED, 0)
        total = total + z_loss_coeff * log_z.square().sum()
    return per_target(total, targets, num_items_in_batch)


def per_target(total: Tensor, targets: Tensor, count: Tensor | int | None = None) -> Tensor:
    """A sum over targets divided by `count`, or by their number; 0 where there is none."""
    if count is None:
        count = (targets != IGNORED).sum()
    return total / (count + (count == 0))
