"""The seam chooses once, says what it took, and refuses by name."""

import pytest
import torch

from retnet.kernels import Backend, KernelsConfig, select_kernels
from retnet.kernels.norms import rms_norm
from retnet.kernels.select import TABLE

PLAIN = KernelsConfig(rms_norm=Backend.torch, elementwise=Backend.torch)


def test_auto_says_what_it_took():
    kernels = select_kernels(KernelsConfig(), "cpu")
    words = "retention=torch rms_norm=torch elementwise=torch loss=torch update=torch"
    assert kernels.description == words


def test_a_backend_that_is_missing_names_the_key_and_the_remedy():
    """On a CPU apex is missing whether it is installed or not: its kernels need a CUDA device."""
    with pytest.raises(
        ValueError, match=r"kernels\.rms_norm=apex: .*; or set kernels\.rms_norm=auto"
    ):
        select_kernels(KernelsConfig(rms_norm=Backend.apex), "cpu")


def test_a_backend_that_does_not_exist_names_those_that_do():
    expected = r"no apex backend for retention.*one of auto, triton, torch"
    with pytest.raises(ValueError, match=expected):
        select_kernels(KernelsConfig(retention=Backend.apex), "cpu")


def test_the_norm_asked_for_is_the_one_inside_the_larger_operators(monkeypatch):
    """Its row in the table stands in for apex's, which runs on a GPU alone."""

    def other(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps) * 2

    row = (lambda device: None, lambda: {"rms_norm": other})
    monkeypatch.setitem(TABLE, ("rms_norm", Backend.apex), row)
    kernels, plain = select_kernels(KernelsConfig(rms_norm=Backend.apex)), select_kernels(PLAIN)
    x, gate = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 20)
    total, normed = kernels.add_rms_norm(x, x, None, 1e-6)
    assert torch.equal(total, 2 * x)
    assert torch.equal(normed, plain.rms_norm(total, None, 1e-6) * 2)
    expected = plain.gated_rms_norm(x, gate, None, 1e-6) * 2
    torch.testing.assert_close(kernels.gated_rms_norm(x, gate, None, 1e-6), expected)


def test_projections_are_fused_unless_asked_otherwise():
    assert select_kernels().fused_projections
    assert not select_kernels(KernelsConfig(fused_projections=False)).fused_projections


def test_rms_norm_is_its_formula():
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    weight = torch.randn(16, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(rms_norm(x, None, 1e-6), expected)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected * weight)


def test_rms_norm_of_bfloat16_rounds_once():
    x = torch.randn(4, 512).bfloat16()
    exact = rms_norm(x.double(), None, 1e-6)
    torch.testing.assert_close(rms_norm(x, None, 1e-6), exact.bfloat16(), rtol=0, atol=0)
