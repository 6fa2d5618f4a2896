"""The elementwise operators are their formulas, forward and backward, whichever backend computes
them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from retnet.kernels import Kernels, KernelsConfig, select_kernels
from retnet.kernels.select import TABLE

CPU = torch.device("cpu")
BACKENDS = [b for (name, b), row in TABLE.items() if name == "elementwise" and row[0](CPU) is None]
"""Triton's too in its interpreter, where `test_triton.py` runs this file again."""
ROUNDINGS = {torch.float64: 32, torch.float32: 16, torch.bfloat16: 2}
"""How many units in the last place of the largest value an error may have. Sums over rows add some
in the wide dtypes; in bfloat16, plain torch rounds after each of its steps."""
B, T, H, K, V, F = 2, 5, 3, 8, 10, 12
EPS = 1e-3


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.value)
def kernels(request) -> Kernels:
    return select_kernels(KernelsConfig(rms_norm=request.param, elementwise=request.param))


@pytest.fixture(params=ROUNDINGS, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def results(function: Callable, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs of `function`, and gradients of the inputs, rounded to `dtype` beforehand."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [draw(*y.shape, seed=90 + i).to(y.dtype) for i, y in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]


def check(operator: Callable, formula: Callable, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """The operator in `dtype` against the formula in float64, on the same rounded inputs."""
    found = results(operator, inputs, dtype)
    wanted = results(formula, [x.to(dtype).double() for x in inputs], torch.float64)
    for value, exact in zip(found, wanted, strict=True):
        assert value.dtype == dtype and value.shape == exact.shape
        allowed = ROUNDINGS[dtype] * torch.finfo(dtype).eps * exact.abs().max()
        assert (value.double() - exact).abs().max() <= allowed


def normalized(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_residual_sum_and_its_norm(kernels, dtype, weighted):
    inputs = [draw(B, T, F, seed=0), draw(B, T, F, seed=1), *[draw(F, seed=2)] * weighted]

    def operator(x: Tensor, branch: Tensor, weight: Tensor | None = None):
        return kernels.add_rms_norm(x, branch, weight, EPS)

    def formula(x: Tensor, branch: Tensor, weight: Tensor | float = 1.0):
        total = x + branch
        # the sum is rounded before its norm is taken
        total = total + (total.to(dtype).double() - total).detach()
        return total, normalized(total) * weight

    check(operator, formula, inputs, dtype)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_norm_over_each_head_with_its_gate(kernels, dtype, weighted):
    """The gate is a part of a wider tensor, as projections of one product are."""
    inputs = [
        draw(B, T, H, V, seed=0),
        draw(B, T, 7 + H * V, seed=1),
        *[draw(V, seed=2)] * weighted,
    ]

    def operator(x: Tensor, wide: Tensor, weight: Tensor | None = None):
        return kernels.gated_rms_norm(x, wide[..., 7:], weight, EPS)

    def formula(x: Tensor, wide: Tensor, weight: Tensor | float = 1.0):
        return silu(wide[..., 7:]) * (normalized(x) * weight).flatten(-2)

    check(operator, formula, inputs, dtype)


@pytest.mark.parametrize("strided", [False, True], ids=["apart", "halves of one"])
def test_a_gate_over_the_inner_width(kernels, dtype, strided):
    inputs = [draw(B, T, 2 * F, seed=0)] if strided else [draw(B, T, F, seed=s) for s in (0, 1)]

    def operator(*given: Tensor):
        return kernels.swiglu(*(given[0].chunk(2, dim=-1) if strided else given))

    def formula(*given: Tensor):
        gate, up = given[0].chunk(2, dim=-1) if strided else given
        return silu(gate) * up

    check(operator, formula, inputs, dtype)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("rows", [1, B], ids=["one position a column", "positions by row"])
def test_rotation_turns_pairs_by_their_angle(kernels, dtype, interleaved, scaled, rows):
    """As complex numbers, (a + bi) * e^(i angle) * scale; x is a part of a wider tensor."""
    angle = 3 * draw(rows, T, 1, K // 2, seed=1)
    scale = draw(rows, T, H, 1, seed=2) if scaled else None
    wide = torch.promote_types(dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    given = None if scale is None else scale.to(wide)

    def heads(x: Tensor) -> Tensor:
        return x[..., 5 : 5 + H * K].unflatten(-1, (H, K))

    def operator(x: Tensor):
        return kernels.rotate(heads(x), cos, sin, given, interleaved)

    def formula(x: Tensor):
        x = heads(x)
        pairs = x.unflatten(-1, (K // 2, 2) if interleaved else (2, K // 2))
        a, b = pairs.unbind(-1 if interleaved else -2)
        turned = torch.complex(a, b) * torch.complex(cos.double(), sin.double())
        turned = turned * (1.0 if given is None else given.double())
        y = torch.stack((turned.real, turned.imag), dim=-1 if interleaved else -2)
        return y.flatten(-2)

    check(operator, formula, [draw(B, T, H * K + 9, seed=0)], dtype)


def test_rotation_keeps_lengths_and_gives_what_positions_say_apart(kernels):
    """<rotate(q, n), rotate(k, m)> depends on n - m alone."""
    q, k = draw(1, 1, 1, K, seed=0), draw(1, 1, 1, K, seed=1)
    frequencies = torch.linspace(0, 1, K // 2, dtype=torch.float64)

    def turn(x: Tensor, position: int) -> Tensor:
        angle = position * frequencies
        return kernels.rotate(x, angle.cos(), angle.sin(), None, True)

    scores = [(turn(q, n) * turn(k, n - 4)).sum() for n in (4, 9, 200)]
    for score in scores:
        assert math.isclose(score, scores[0], rel_tol=1e-12)
    assert math.isclose(turn(q, 77).norm(), q.norm(), rel_tol=1e-12)


def test_large_inputs_overflow_nowhere_inside(kernels):
    """float16 ends at 65,504, and the mean square of these is far beyond."""
    x = torch.full((1, 1, 2, 8), 2e4, dtype=torch.float16)
    gate = torch.full((1, 1, 16), 3.0, dtype=torch.float16)
    y = kernels.gated_rms_norm(x, gate, None, 1e-6)
    torch.testing.assert_close(y, torch.nn.functional.silu(gate), rtol=2e-3, atol=0)
    total, normed = kernels.add_rms_norm(x, x, None, 1e-6)
    assert (total == 4e4).all() and (normed == 1).all()
