"""Rotation: float64's numbers for both kinds of pairs, from any strides, with tables for each row
of the batch or one for all."""

import pytest
import torch

from retnet.kernels.triton import rotation
from tests.retnet.kernels.triton.laws import (
    check_against_float64,
    check_custom_operator,
    check_one_graph,
    strided,
)


def define(x, cos, sin, scale, interleaved):
    """Each pair as a complex number, turned."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    turned = torch.view_as_real(turned)
    y = (turned if interleaved else turned.mT).flatten(-2)
    return y if scale is None else y * scale


def tables(shape, batch, device):
    """cos, sin [batch, T, 1, K/2] and scale [batch, T, H, 1] in float32."""
    _, time, heads, width = shape
    angle = 9 * torch.rand(batch, time, 1, width // 2, device=device)
    return angle.cos(), angle.sin(), torch.rand(batch, time, heads, 1, device=device)


def check(x, cos, sin, scale, interleaved):
    wide = [None if table is None else table.double() for table in (cos, sin, scale)]
    check_against_float64(
        lambda x: rotation.rotate(x, cos, sin, scale, interleaved),
        lambda x: define(x, *wide, interleaved),
        [x],
    )


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 11, 3, 20), (1, 9, 2, 160), (2, 1, 1, 2)])
def test_it_and_its_gradient_are_those_of_float64(shape, dtype, interleaved, device):
    x = strided(shape, dtype, device)
    for batch in (1, shape[0]):
        cos, sin, scale = tables(shape, batch, device)
        check(x, cos, sin, scale, interleaved)
        check(x, cos, sin, None, interleaved)


def test_bfloat16_is_computed_in_float32(device):
    cos, sin, scale = tables((2, 5, 3, 24), 1, device)
    check(strided((2, 5, 3, 24), torch.bfloat16, device), cos, sin, scale, True)


def test_queries_inside_a_wider_projection_turn_where_they_lie(device):
    projected = strided((2, 5, 3 * 24 + 10), torch.float16, device)
    cos, sin, scale = tables((2, 5, 3, 24), 1, device)
    check(projected[..., :72].unflatten(-1, (3, 24)), cos, sin, scale, True)


def test_float64_tables_are_used_in_float64(device):
    cos, sin, scale = (table.double() for table in tables((2, 5, 3, 24), 2, device))
    check(strided((2, 5, 3, 24), torch.float64, device), cos, sin, scale, True)


def test_it_is_a_custom_operator_of_one_graph(device):
    shape = (2, 3, 2, 12)
    x = strided(shape, torch.float32, device).requires_grad_()
    cos, sin, scale = tables(shape, 1, device)
    for given in (scale, None):
        check_custom_operator(rotation._rotate, x, cos, sin, given, True, False)
    check_one_graph(lambda x: rotation.rotate(x, cos, sin, scale, False), [x])


def test_what_it_cannot_do_is_refused(device):
    cos, sin, scale = tables((2, 3, 2, 12), 1, device)
    x = torch.randn(2, 3, 2, 12, device=device)
    with pytest.raises(ValueError, match="rows of 10 by 6 angles: needed two elements an angle"):
        rotation.rotate(x[..., :10], cos, sin, scale, True)
    with pytest.raises(ValueError, match="requires a gradient.*kernels.elementwise=torch"):
        rotation.rotate(x, cos, sin, scale.requires_grad_(), True)
