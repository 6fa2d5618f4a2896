"""The optimizer of stage 0 refuses what is not finite, whatever the limit is."""

import math

import pytest
import torch
from torch import nn

from retnet.training.optimizer import Update
from retnet.training.replicated import ReplicatedOptimizer


@pytest.mark.parametrize("update", list(Update))
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("limit", [None, math.inf, 5.0])
def test_a_gradient_that_is_not_finite_moves_no_weight(
    update: Update, bad: float, limit: float | None
) -> None:
    """Also before there is a limit: infinite is not above infinity."""
    weight = nn.Parameter(torch.ones(4))
    zero = ReplicatedOptimizer(
        torch.optim.AdamW([weight], lr=0.1, fused=True), gradient_clipping=1.0, update=update
    )
    zero.norm_limit = None if limit is None else torch.tensor(limit, dtype=torch.float64)
    weight.grad = torch.tensor([1.0, bad, 1.0, 1.0])
    zero.step()
    assert weight.tolist() == [1.0] * 4
    if limit is not None:  # without one a fused step refuses all that come after, too
        weight.grad = torch.ones(4)
        zero.step()
        assert all(0.8 < value < 1.0 for value in weight.tolist())
