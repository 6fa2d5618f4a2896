"""Cross entropy of rows: the chunked loss's own terms and gradient, at any vocabulary."""

from functools import partial

import pytest
import torch

from retnet.kernels.linear_cross_entropy import linear_cross_entropy
from retnet.kernels.triton import cross_entropy
from retnet.kernels.triton.cross_entropy import cross_entropy_rows
from tests.retnet.kernels.triton.laws import TOLERANCE, check_custom_operator, strided

# narrower than a step along the row, and several steps with a ragged end
VOCABULARIES = [5, 2 * cross_entropy.COLUMNS + 77]


def draw(rows, vocabulary, dtype, device):
    """Logits far apart, and targets, the first and last of the vocabulary and ignored ones too."""
    logits = 10 * strided((rows, vocabulary), dtype, device)
    targets = torch.randint(vocabulary, (rows,), device=device)
    targets[0], targets[1], targets[2] = 0, vocabulary - 1, -100
    return logits, targets


def define(logits, targets, z_loss_coeff, label_smoothing):
    """torch's cross entropy and the squared log Z, by autograd in float64."""
    leaf = logits.double().detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        leaf, targets, reduction="sum", label_smoothing=label_smoothing
    )
    loss = loss + z_loss_coeff * (leaf.logsumexp(-1).square() * (targets >= 0)).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_loss_and_gradient_are_those_of_float64(vocabulary, dtype, device):
    for terms in ((0.0, 0.0), (1e-2, 0.1)):
        logits, targets = draw(5, vocabulary, dtype, device)
        loss, gradient = define(logits, targets, *terms)
        again = logits.clone()
        found, in_place = cross_entropy_rows(logits, targets, *terms)
        assert in_place is logits and found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=0)
        error = (logits.double() - gradient).norm() / gradient.norm()
        assert error <= TOLERANCE[dtype]
        assert torch.equal(cross_entropy_rows(again, targets, *terms)[0], found)
        assert torch.equal(again, logits)


def test_it_makes_the_gradient_of_the_chunked_loss(device):
    """What `linear_cross_entropy` does between its products, with the same numbers around it."""
    hidden = torch.randn(9, 12, device=device, requires_grad=True)
    weight = torch.randn(50, 12, device=device, requires_grad=True)
    targets = draw(9, 50, torch.float32, device)[1]
    for terms in ((0.0, 0.0), (1e-2, 0.1)):
        loss = linear_cross_entropy(hidden, weight, targets, *terms)
        expected = torch.autograd.grad(loss, (hidden, weight))
        found, gradient = cross_entropy_rows((hidden @ weight.T).detach(), targets, *terms)
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(gradient @ weight, expected[0])
        torch.testing.assert_close(gradient.T @ hidden, expected[1])


def test_logits_of_minus_infinity_have_no_probability(device):
    logits, targets = draw(4, 40, torch.float32, device)
    logits[:, 7:20] = -torch.inf
    targets[3] = 30
    loss, gradient = define(logits, targets, 0.0, 0.0)
    found, _ = cross_entropy_rows(logits, targets, 0.0, 0.0)
    torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-5, atol=1e-6)


def test_an_ignored_row_counts_nothing_whatever_it_holds(device):
    logits, targets = draw(4, 40, torch.float32, device)
    expected = cross_entropy_rows(logits.clone(), targets, 1e-2, 0.1)[0]
    logits[targets == -100] = torch.nan
    found, gradient = cross_entropy_rows(logits, targets, 1e-2, 0.1)
    assert torch.equal(found, expected) and not gradient[targets == -100].any()


def test_it_is_a_custom_operator_of_one_graph(device):
    logits, targets = draw(4, 40, torch.float32, device)
    check_custom_operator(cross_entropy._cross_entropy_rows, logits, targets, 1e-2, 0.1)
    compiled = torch.compile(
        partial(cross_entropy_rows, z_loss_coeff=1e-2, label_smoothing=0.1),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = cross_entropy_rows(logits.clone(), targets, 1e-2, 0.1)
    found = compiled(logits, targets)
    assert torch.equal(found[0], expected[0]) and torch.equal(logits, expected[1])


def test_what_it_cannot_take_is_refused(device):
    logits, targets = draw(4, 40, torch.float32, device)
    with pytest.raises(ValueError, match=r"logits \[4, 40\] and targets \[3\]: needed"):
        cross_entropy_rows(logits, targets[1:], 0.0, 0.0)
    with pytest.raises(ValueError, match="needed columns that are neighbors"):
        cross_entropy_rows(logits.T.contiguous().T, targets, 0.0, 0.0)
