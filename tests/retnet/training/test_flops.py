"""The table of peaks, and its silence about devices that it does not know."""

import pytest
import torch

from retnet.training.flops import peak_flops, peak_of_name


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.bfloat16, 989.4e12),
        ("NVIDIA H200 NVL", torch.bfloat16, 835.5e12),
        ("NVIDIA L40S", torch.bfloat16, 362.1e12),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4e12),
        ("Tesla T4", torch.float16, 65e12),
        ("Tesla T4", torch.bfloat16, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16, None),
        ("NVIDIA A1000", torch.bfloat16, None),
        ("NVIDIA GeForce GTX 1080", torch.float32, None),
    ],
)
def test_known_devices_have_their_peak_and_unknown_ones_none(
    name: str, dtype: torch.dtype, peak: float | None
) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    assert peak_of_name(name, dtype) == peak


def test_tf32_counts_where_it_is_allowed() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_of_name("NVIDIA A100-SXM4-80GB", torch.float32) == 156e12
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_cpu_has_no_known_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
