"""The optimizer's one pass: torch's AdamW in float64 within float32's rounding, step after step."""

import pytest
import torch

from retnet.kernels.triton import adamw
from retnet.kernels.triton.adamw import adamw_step
from retnet.training.fused_step import FusedStep, Part
from tests.retnet.kernels.triton.laws import check_custom_operator

ELEMENTS = 2 * adamw.BLOCK + 77
NUMBERS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def scalar(value, device):
    return torch.tensor(value, dtype=torch.float32, device=device)


def fresh(device, weight_dtype=torch.bfloat16):
    """parameter, exp_avg, exp_avg_sq and the low-precision weight, at the start of a run."""
    parameter = torch.randn(ELEMENTS, device=device)
    weight = None if weight_dtype is None else parameter.to(weight_dtype)
    return parameter, torch.zeros_like(parameter), torch.zeros_like(parameter), weight


def stepped(tensors, gradient, step, lr, coefficient, not_finite=0.0):
    parameter, exp_avg, exp_avg_sq, weight = tensors
    device = parameter.device
    adamw_step(
        *(parameter, gradient, exp_avg, exp_avg_sq, weight),
        step=scalar(step, device),
        lr=lr,
        coefficient=scalar(coefficient, device),
        not_finite=scalar(not_finite, device),
        **NUMBERS,
    )


def torch_adamw(parameter):
    leaf = torch.nn.Parameter(parameter.clone())
    betas = NUMBERS["beta1"], NUMBERS["beta2"]
    rest = {name: NUMBERS[name] for name in ("eps", "weight_decay")}
    return leaf, torch.optim.AdamW([leaf], betas=betas, **rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, None])
def test_steps_are_those_of_torch(dtype, weight_dtype, device):
    """The update and both moments are judged, against float64 and no worse than twice torch's own
    float32."""
    tensors = fresh(device, weight_dtype)
    start = tensors[0].clone()
    exact, exact_optimizer = torch_adamw(start.double())
    plain, plain_optimizer = torch_adamw(start)
    for step, lr in enumerate((1e-3, 2e-3, 5e-4, 1e-3), 1):
        gradient = (torch.randn(ELEMENTS, device=device) / 10).to(dtype)
        stepped(tensors, gradient, step, lr, coefficient=0.5)
        for leaf, optimizer in ((exact, exact_optimizer), (plain, plain_optimizer)):
            optimizer.param_groups[0]["lr"] = lr
            leaf.grad = gradient.to(leaf.dtype) * 0.5
            optimizer.step()
    states = [optimizer.state[leaf] for leaf, optimizer in
              ((exact, exact_optimizer), (plain, plain_optimizer))]  # fmt: skip
    pairs = [(tensors[0] - start, exact - start, plain - start)]
    for ours, name in zip(tensors[1:3], ("exp_avg", "exp_avg_sq"), strict=True):
        pairs.append((ours, *(state[name] for state in states)))
    for ours, truth, theirs in pairs:
        error, allowed = (ours - truth).norm(), (theirs - truth).norm()
        assert error <= 2 * allowed, (error / truth.norm(), allowed / truth.norm())
    if weight_dtype is not None:
        difference = (tensors[3].double() - tensors[0]).norm() / tensors[0].norm()
        assert difference <= 2.0 ** (-7 if weight_dtype == torch.bfloat16 else -11)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.int32])
def test_a_gradient_that_is_not_finite_changes_nothing(kind, device):
    tensors = fresh(device)
    before = [x.clone() for x in tensors]
    gradient = torch.full((ELEMENTS,), torch.inf, device=device)
    adamw_step(
        *(tensors[0], gradient, *tensors[1:]),
        step=scalar(1, device),
        lr=1e-3,
        coefficient=scalar(torch.nan, device),
        not_finite=torch.tensor(1, device=device).to(kind),
        **NUMBERS,
    )
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_it_repeats_bit_by_bit(device):
    gradient = torch.randn(ELEMENTS, device=device)
    first = fresh(device)
    second = [x.clone() for x in first]
    for tensors in (first, second):
        stepped(tensors, gradient, 1, 1e-3, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_it_is_a_custom_operator(device):
    parameter, exp_avg, exp_avg_sq, weight = fresh(device)
    gradient = torch.randn(ELEMENTS, device=device).bfloat16()
    one, zero = scalar(1.0, device), scalar(0.0, device)
    for copy in (weight, None):
        check_custom_operator(
            adamw._adamw_step,
            *(parameter, gradient, exp_avg, exp_avg_sq, copy, one),
            *(1e-3, 0.9, 0.95, 1e-8, 0.1, one, zero),
        )


def test_tensors_that_do_not_go_together_are_refused(device):
    parameter, exp_avg, exp_avg_sq, weight = fresh(device)
    with pytest.raises(ValueError, match="gradient .* needed contiguous tensors of one shape"):
        stepped((parameter, exp_avg, exp_avg_sq, weight), exp_avg[1:], 1, 1e-3, 1.0)
    with pytest.raises(ValueError, match="exp_avg torch.bfloat16; needed float32"):
        stepped((parameter, exp_avg.bfloat16(), exp_avg_sq, weight), exp_avg, 1, 1e-3, 1.0)


def test_the_fused_update_does_the_same_with_it_as_with_torch_and_skips_the_same_step():
    def steps(operator) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        masters = [torch.randn(n, generator=generator) for n in (37, 64)]
        weights = [master.half() for master in masters]  # the interpreter cuts bfloat16 off
        parameters = [torch.nn.Parameter(master) for master in masters]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), fused=True)
        step = FusedStep(optimizer, gradient_clipping=1.0, shared_out=False, operator=operator)
        for number in range(4):
            gradients = [torch.randn(n, generator=generator) for n in (37, 64)]
            if number == 3:
                gradients[1][5] = torch.nan
            parts = zip(parameters, gradients, weights, strict=True)
            step([[Part(master, [gradient], weight) for master, gradient, weight in parts]])
        state = [value for each in optimizer.state.values() for value in each.values()]
        return [*(p.detach() for p in parameters), *weights, *state]

    for found, expected in zip(steps(adamw_step), steps(None), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
