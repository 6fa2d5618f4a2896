"""The limit inside DeepSpeed's own steps is where we rely on it to be, or the run does not begin.
That it refuses what it should is test_bad_steps.py's."""

import math
from types import SimpleNamespace

import pytest
import torch

from retnet.training.norm_limit import RELIED_ON, forget_gradients, install_norm_limit, norm_of


def zero_optimizer(kind: str = "DeepSpeedZeroOptimizer", **values: object) -> SimpleNamespace:
    """An object of a class of that name."""
    return type(kind, (SimpleNamespace,), {})(**values)


def test_a_deepspeed_that_lacks_something_is_refused_with_its_name_and_the_way_out() -> None:
    for kind, name in RELIED_ON.items():
        with pytest.raises(RuntimeError, match=f"{kind}, without {name}; .*stability.mode=off"):
            install_norm_limit(zero_optimizer(kind))
    with pytest.raises(RuntimeError, match="optimizer is SimpleNamespace; .*stability.mode=off"):
        install_norm_limit(SimpleNamespace())


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_only_a_finite_norm_above_the_limit_is_shown_as_nan_and_told_once(scale: float) -> None:
    """The norm that DeepSpeed asks for is times the loss scale; what is told is not."""
    norms = iter([0.5, 3.0, math.inf, 3.0])
    zero = zero_optimizer(
        loss_scale=scale, scaled_global_norm=lambda: torch.tensor(scale * next(norms))
    )
    engine = SimpleNamespace(
        optimizer=zero, device=torch.device("cpu"), get_global_grad_norm=lambda: math.inf
    )
    install_norm_limit(zero)
    zero.norm_limit = torch.tensor(2.0, dtype=torch.float64)
    assert float(zero.scaled_global_norm()) == 0.5 * scale and zero.norm_seen is None
    assert math.isnan(zero.scaled_global_norm())
    assert float(norm_of(engine)) == 3.0, "what was above the limit"
    assert math.isinf(norm_of(engine)), "DeepSpeed's own, once it was told"
    assert math.isinf(zero.scaled_global_norm()) and zero.norm_seen is None
    zero.norm_limit = None
    assert float(zero.scaled_global_norm()) == 3.0 * scale


def test_refused_sums_are_forgotten_where_deepspeed_would_add_to_them() -> None:
    for offload, left in ((True, None), (False, "sums")):
        zero = zero_optimizer(cpu_offload=offload, averaged_gradients={0: "sums", 1: "sums"})
        forget_gradients(SimpleNamespace(optimizer=zero))
        assert zero.averaged_gradients == {0: left, 1: left}
