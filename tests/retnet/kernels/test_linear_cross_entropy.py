"""The loss in pieces is the loss from all logits: the same sum, the same gradients, one piece's
memory."""

import pytest
import torch

from retnet.kernels.linear_cross_entropy import linear_cross_entropy

ROWS, WIDTH, VOCABULARY = 37, 24, 53


def inputs(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    targets[5:9] = -100
    return hidden, weight, targets


def from_all_logits(hidden, weight, targets, z_loss_coeff: float, label_smoothing: float):
    logits = hidden.double() @ weight.double().T
    loss = torch.nn.functional.cross_entropy(
        logits, targets, reduction="sum", label_smoothing=label_smoothing
    )
    log_z = logits.logsumexp(-1)[targets != -100]
    return loss + z_loss_coeff * log_z.square().sum()


@pytest.mark.parametrize("rows", [1, 5, 37, 1000])
@pytest.mark.parametrize("terms", [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.01, 0.1)], ids=str)
def test_pieces_give_what_all_logits_give(rows, terms):
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets, *terms, logits_at_once=rows * VOCABULARY)
    want = from_all_logits(hidden, weight, targets, *terms)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    found = torch.autograd.grad(0.3 * loss, (hidden, weight))
    wanted = torch.autograd.grad(0.3 * want, (hidden, weight))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        alone = linear_cross_entropy(hidden, weight, targets, *terms)
    torch.testing.assert_close(alone, loss.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_the_plain_loss(dtype):
    """Each against float64, with the plain loss as autograd differentiates it in that dtype."""
    hidden, weight, targets = inputs(dtype)
    loss = linear_cross_entropy(hidden, weight, targets, logits_at_once=5 * VOCABULARY)
    logits = (hidden @ weight.T).float()
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    exact = from_all_logits(hidden, weight, targets, 0, 0)
    assert (loss - exact).abs() <= 2 * (plain - exact).abs() + 1e-3
    ours, theirs, best = (torch.autograd.grad(x, (hidden, weight)) for x in (loss, plain, exact))
    for a, b, c in zip(ours, theirs, best, strict=True):
        assert a.dtype == dtype
        assert (a - c).abs().max() <= 2 * (b - c).abs().max()


def test_a_weight_that_does_not_learn_gets_no_gradient():
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight.detach(), targets)
    want = from_all_logits(hidden, weight.detach(), targets, 0, 0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden)[0],
        torch.autograd.grad(want, hidden)[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_whole_numbers_are_coefficients_too():
    hidden, weight, targets = inputs()
    found = linear_cross_entropy(hidden, weight, targets, 0, 0)
    found.backward()
    assert torch.equal(found, linear_cross_entropy(hidden, weight, targets, 0.0, 0.0))


def test_a_row_that_does_not_count_may_hold_anything():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        hidden[6] = torch.inf
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.isfinite()
    gradient = torch.autograd.grad(loss, hidden)[0]
    assert gradient.isfinite().all() and not gradient[6].any()


def test_no_targets_cost_nothing_and_move_nothing():
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), 0.1, 0.1)
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("learning", [True, False], ids=["with gradients", "without"])
def test_no_more_logits_than_asked_for_are_alive(learning):
    """Nothing larger than a piece's logits is ever made, but for the two gradients."""
    hidden, weight, targets = (x.detach() for x in inputs())
    hidden = hidden.repeat(40, 1).requires_grad_(learning)
    targets, weight, sizes = targets.repeat(40), weight.requires_grad_(learning), []

    class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)))
            return out

    with Allocations():
        linear_cross_entropy(hidden, weight, targets, logits_at_once=8 * VOCABULARY)
    assert 8 * VOCABULARY in sizes
    assert max(sizes) <= max(8 * VOCABULARY, weight.numel(), hidden.numel() if learning else 0)
    assert hidden.numel() < ROWS * 40 * VOCABULARY
