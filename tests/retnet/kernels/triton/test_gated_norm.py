"""The norm over heads times its gate: float64's numbers at any head width, from any strides."""

import pytest
import torch

from retnet.kernels.triton import gated_norm
from tests.retnet.kernels.triton.laws import (
    check_against_float64,
    check_custom_operator,
    check_one_graph,
    strided,
)

EPS = 1e-6
# more tiles than programs, ragged ones last; one row a tile; more columns than a tile
SHAPES = [(2, 17, 3, 37), (1, 5, 3, 432), (3, 2, 1, 428), (1, 1, 2, 5000)]


def define(x, gate, weight):
    n = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    n = n if weight is None else n * weight
    return gate / (1 + torch.exp(-gate)) * n.flatten(-2)


def gated_rms_norm(x, gate, weight):
    return gated_norm.gated_rms_norm(x, gate, weight, EPS)


def draw(shape, dtype, device):
    """x and gate, rows of both further apart than wide, and a weight."""
    *leading, heads, width = shape
    gate = strided((*leading, heads * width), dtype, device)
    return strided(shape, dtype, device), gate, torch.rand(width).to(gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_and_its_gradients_are_those_of_float64(shape, dtype, device):
    x, gate, weight = draw(shape, dtype, device)
    check_against_float64(gated_rms_norm, define, [x, gate, weight])
    check_against_float64(gated_rms_norm, define, [x, gate, None])


def test_heads_may_lie_before_tokens(device):
    """[B, H, T, V] in memory, as some retention kernels write it."""
    x, gate, weight = draw((2, 3, 5, 20), torch.float32, device)
    gate = strided((2, 5, 60), torch.float32, device)
    check_against_float64(gated_rms_norm, define, [x.transpose(1, 2), gate, weight])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_hold_it_too(dtype, device):
    check_against_float64(gated_rms_norm, define, draw((2, 3, 2, 20), dtype, device))


def test_dtypes_may_differ_and_each_gradient_has_its_own(device):
    x, gate, weight = draw((2, 5, 3, 20), torch.float16, device)
    check_against_float64(gated_rms_norm, define, [x, gate, weight.float()])
    check_against_float64(gated_rms_norm, define, [x.float(), gate, weight])


def test_large_gates_stay_finite(device):
    x = torch.ones(1, 2, 1, 16, device=device)
    gate = torch.tensor([-500.0, 500.0], device=device)[None, :, None].expand(1, 2, 16)
    check_against_float64(gated_rms_norm, define, [x, gate, None])


def test_it_is_a_custom_operator_of_one_graph(device):
    x, gate, weight = (y.requires_grad_() for y in draw((2, 3, 2, 20), torch.float32, device))
    for given in (weight, None):
        check_custom_operator(gated_norm._gated_rms_norm, x, gate, given, EPS)
    grad = torch.randn(gate.shape, device=device)
    detached = (y.detach() for y in (x, gate, weight))
    check_custom_operator(gated_norm._gated_rms_norm_backward, grad, *detached, EPS)
    check_one_graph(gated_rms_norm, [x, gate, weight])


def test_shapes_that_do_not_go_together_are_refused(device):
    x, gate, weight = draw((2, 3, 2, 20), torch.float32, device)
    with pytest.raises(ValueError, match=r"gate \[2, 3, 39\]: needed a gate of \[2, 3, 40\]"):
        gated_rms_norm(x, gate[..., 1:], weight)
    with pytest.raises(ValueError, match=r"heads of 20 with weight \[19\]: needed \[20\]"):
        gated_rms_norm(x, gate, weight[1:])
