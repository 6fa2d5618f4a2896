"""What our step relies on inside DeepSpeed is checked before it is relied on."""

from types import SimpleNamespace

import pytest

from retnet.training.zero_step import RELIED_ON, install_fused_step


def test_a_deepspeed_that_lacks_something_is_refused_with_its_name_and_the_way_out() -> None:
    for kind, names in RELIED_ON.items():
        other = type(kind, (SimpleNamespace,), {})
        zero = other(**{name: None for name in names if name != "zero_grad"})
        with pytest.raises(RuntimeError, match=f"{kind}, without zero_grad; .*update=stock"):
            install_fused_step(zero, gradient_clipping=1.0, reduce_bucket_size=10)


def test_an_unknown_wrapper_is_refused_by_its_name() -> None:
    with pytest.raises(RuntimeError, match="optimizer is SimpleNamespace; .*update=stock"):
        install_fused_step(SimpleNamespace(), gradient_clipping=1.0, reduce_bucket_size=10)
