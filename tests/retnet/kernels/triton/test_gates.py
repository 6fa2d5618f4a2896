"""SwiGLU: float64's numbers at any width, from two tensors or the halves of one."""

import pytest
import torch

from retnet.kernels.triton import gates
from tests.retnet.kernels.triton.laws import (
    check_against_float64,
    check_custom_operator,
    check_one_graph,
    strided,
)


def define(gate, up):
    return gate / (1 + torch.exp(-gate)) * up


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 11, 37), (3, 1100), (9, 512), (1,)])
def test_it_and_its_gradients_are_those_of_float64(shape, dtype, device):
    gate, up = (strided(shape, dtype, device) for _ in range(2))
    check_against_float64(gates.swiglu, define, [gate, up])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_halves_of_one_tensor_get_the_gradient_of_one_tensor(dtype, device):
    whole = strided((2, 5, 2 * 33), dtype, device)
    check_against_float64(
        lambda whole: gates.swiglu(*whole.chunk(2, dim=-1)),
        lambda whole: define(*whole.chunk(2, dim=-1)),
        [whole],
    )


def test_dtypes_may_differ_and_each_gradient_has_its_own(device):
    gate, up = strided((3, 20), torch.float16, device), strided((3, 20), torch.float32, device)
    check_against_float64(gates.swiglu, define, [gate, up])


def test_it_is_a_custom_operator_of_one_graph(device):
    gate, up = (strided((2, 3, 20), torch.float32, device).requires_grad_() for _ in range(2))
    check_custom_operator(gates._swiglu, gate, up)
    check_custom_operator(gates._swiglu_backward, torch.randn_like(up), gate.detach(), up.detach())
    check_one_graph(gates.swiglu, [gate, up])


def test_shapes_that_differ_are_refused(device):
    x = torch.randn(4, 24, device=device)
    with pytest.raises(ValueError, match=r"gate \[4, 24\] and up \[24\]: needed one shape"):
        gates.swiglu(x, x[0])
