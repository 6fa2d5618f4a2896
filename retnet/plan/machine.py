"""The device that a plan is for: one named in `plan.*`, or this machine's. It is asked what it has,
and computes nothing.
"""

from typing import NamedTuple

import torch

from retnet.plan.config import PlanConfig
from retnet.training.engine import Precision, resolve_dtype
from retnet.training.flops import peak_flops, peak_of_name
from retnet.training.recompute import device_memory


class Machine(NamedTuple):
    """One device of the planned run."""

    name: str
    is_gpu: bool
    memory: float
    """Bytes of one process."""
    peak: float | None
    """FLOP/s; None where it is not known."""
    dtype: torch.dtype
    """What the module computes in there."""


def find_machine(
    keys: PlanConfig, precision: Precision, own_peak: float | None, devices: int
) -> Machine:
    """The device that the keys name, or this machine's, which is asked and not used.

    own_peak: FLOP/s that overrule the table; devices: processes that share this machine. ValueError
    where another machine is named without its memory.
    """
    if keys.device and keys.device.lower() != "cpu":
        if not keys.memory:
            raise ValueError(
                f"plan.device={keys.device} is another machine than this one: say its memory too, "
                "in GB, as plan.memory=80, or take a whole one, as plan=h100_8"
            )
        dtype = dtype_of_name(keys.device)
        if precision is not Precision.auto:
            dtype = getattr(torch, precision.value)
        peak = own_peak or peak_of_name(keys.device, dtype)
        return Machine(keys.device, True, keys.memory * 1e9, peak, dtype)
    is_gpu = torch.cuda.is_available() and not keys.device
    device = torch.device("cuda" if is_gpu else "cpu")
    dtype = resolve_dtype(precision, device)
    name = torch.cuda.get_device_name(device) if is_gpu else "CPU"
    memory = keys.memory * 1e9 or device_memory(device, devices)
    return Machine(name, is_gpu, memory, own_peak or peak_flops(device, dtype), dtype)


def dtype_of_name(device: str) -> torch.dtype:
    """What engine.dtype=auto would be on a GPU of this name: bfloat16 where its data sheet has a
    peak for it or is not known, else float32."""
    known = peak_of_name(device, torch.float32) is not None
    return torch.float32 if known and not peak_of_name(device, torch.bfloat16) else torch.bfloat16
