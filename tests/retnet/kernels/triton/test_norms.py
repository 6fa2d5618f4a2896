"""RMSNorm alone and after a residual sum: float64's numbers at any width, from any strides."""

import pytest
import torch

from retnet.kernels.triton import norms
from tests.retnet.kernels.triton.laws import (
    check_against_float64,
    check_custom_operator,
    check_one_graph,
    outputs_and_gradients,
    strided,
)

EPS = 1e-6
# more tiles than programs, ragged ones last; one row a tile; more columns than a tile
SHAPES = [(2, 53, 37), (13, 432), (1, 5000), (5, 3), (17,)]
DTYPES = [torch.float32, torch.float16]


def define_rms_norm(x, weight):
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    return y if weight is None else y * weight


def rms_norm(x, weight):
    return norms.rms_norm(x, weight, EPS)


def add_rms_norm(x, branch, weight):
    return norms.add_rms_norm(x, branch, weight, EPS)


def defined_in(dtype):
    """Its sum is rounded to x's dtype, and that is what is normalized."""

    def define(x, branch, weight):
        total = x + branch
        total = total + (total.to(dtype).double() - total).detach()
        return total, define_rms_norm(total, weight)

    return define


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_and_its_gradients_are_those_of_float64(shape, dtype, device):
    x = strided(shape, dtype, device)
    for weight in (torch.rand(shape[-1:]).to(x), None):
        check_against_float64(rms_norm, define_rms_norm, [x, weight])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_and_its_norm_and_gradients_are_those_of_float64(shape, dtype, device):
    x, branch = strided(shape, dtype, device), strided(shape, dtype, device)
    for weight in (torch.rand(shape[-1:]).to(x), None):
        check_against_float64(add_rms_norm, defined_in(dtype), [x, branch, weight])


def test_float64_stays_float64(device):
    x, branch = (strided((13, 432), torch.float64, device) for _ in range(2))
    weight = torch.rand(432).to(x)
    check_against_float64(rms_norm, define_rms_norm, [x, weight])
    check_against_float64(add_rms_norm, defined_in(torch.float64), [x, branch, weight])


def test_dtypes_may_differ_and_each_gradient_has_its_own(device):
    """As under autocast: the residual sum stays wide, its branches are narrow."""
    for narrow in (torch.float16, torch.bfloat16):
        x, branch = strided((6, 40), torch.float32, device), strided((6, 40), narrow, device)
        weight = torch.rand(40, device=device)
        check_against_float64(rms_norm, define_rms_norm, [branch, weight])
        check_against_float64(add_rms_norm, defined_in(torch.float32), [x, branch, weight])


def test_bfloat16_sums_are_rounded_before_they_are_normalized(device):
    x, branch = (torch.randn(4, 40, device=device).bfloat16() for _ in range(2))
    total, y = add_rms_norm(x, branch, None)
    assert torch.equal(y, rms_norm(total, None))


def test_rows_of_zeros_without_eps_spoil_no_other_row(device):
    """Rows beyond the last one are zeros, too: they must not reach the weight's gradient."""
    x, weight = torch.rand(3, 40, device=device), torch.rand(40, device=device)
    _, _, grad_weight = outputs_and_gradients(
        lambda x, weight: norms.rms_norm(x, weight, 0.0), [x, weight], [torch.ones_like(x)]
    )
    expected = (x / x.square().mean(-1, keepdim=True).sqrt()).sum(0)
    torch.testing.assert_close(grad_weight, expected)


def test_an_output_that_is_not_used_has_no_part_in_the_gradient(device):
    x, branch = (torch.randn(4, 24, device=device) for _ in range(2))
    for used in range(2):
        check_against_float64(
            lambda x, branch, used=used: add_rms_norm(x, branch, None)[used],
            lambda x, branch, used=used: defined_in(torch.float32)(x, branch, None)[used],
            [x, branch],
        )


def test_no_rows_give_no_rows_and_a_weight_gradient_of_zeros(device):
    x, weight = torch.randn(0, 24, device=device), torch.rand(24, device=device)
    y, grad_x, grad_weight = outputs_and_gradients(rms_norm, [x, weight], [x])
    assert y.shape == grad_x.shape == x.shape and not grad_weight.any()


def test_they_are_custom_operators_of_one_graph(device):
    x, branch = (strided((2, 5, 24), torch.float32, device).requires_grad_() for _ in range(2))
    weight = torch.rand(24, device=device, requires_grad=True)
    for given in (weight, None):
        check_custom_operator(norms._rms_norm, x, given, EPS)
        check_custom_operator(norms._add_rms_norm, x, branch, given, EPS)
    grad = torch.randn_like(x)
    check_custom_operator(norms._rms_norm_backward, grad, x.detach(), x.detach(), None, EPS)
    check_one_graph(rms_norm, [x, weight])
    check_one_graph(add_rms_norm, [x, branch, weight])


def test_shapes_that_do_not_go_together_are_refused(device):
    x = torch.randn(4, 24, device=device)
    with pytest.raises(ValueError, match=r"rows of 24 with weight \[23\]: needed \[24\]"):
        norms.rms_norm(x, x[0, 1:], EPS)
    with pytest.raises(ValueError, match=r"x \[4, 24\] and branch \[24\]: needed one shape"):
        norms.add_rms_norm(x, x[0], None, EPS)
