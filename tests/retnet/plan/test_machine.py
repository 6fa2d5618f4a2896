"""Which device a plan is for, and what is known of it."""

import pytest
import torch

from retnet.plan.config import PlanConfig
from retnet.plan.machine import dtype_of_name, find_machine
from retnet.training.engine import Precision


def test_a_named_device_has_the_peak_of_its_data_sheet():
    keys = PlanConfig(device="NVIDIA H200", memory=141)
    machine = find_machine(keys, Precision.auto, None, 8)
    assert machine == ("NVIDIA H200", True, 141e9, 989.4e12, torch.bfloat16)
    assert find_machine(keys, Precision.auto, 5e14, 8).peak == 5e14
    assert find_machine(keys, Precision.float32, None, 8).dtype == torch.float32


def test_another_machine_needs_its_memory():
    with pytest.raises(ValueError, match="plan.memory=80"):
        find_machine(PlanConfig(device="NVIDIA H200"), Precision.auto, None, 8)


def test_a_device_without_bfloat16_is_planned_in_float32():
    assert dtype_of_name("Tesla T4") == torch.float32
    assert dtype_of_name("NVIDIA A100-SXM4-80GB") == torch.bfloat16
    assert dtype_of_name("a device of next year") == torch.bfloat16


def test_this_machines_cpu_shares_its_memory_among_the_processes():
    one, four = (find_machine(PlanConfig(device="cpu"), Precision.auto, None, n) for n in (1, 4))
    assert one.memory == 4 * four.memory > 0 and one.peak is None and not one.is_gpu
