"""The seam: which implementation of each operator a model runs on, chosen once, in one table.

`model=` says what is computed, `kernels=` says how; a choice here never changes a result beyond
rounding. Not here: the operators themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch

from retnet.kernels.apex import load_rms_norm, missing_apex
from retnet.kernels.chunkwise import retention_chunkwise
from retnet.kernels.norms import rms_norm
from retnet.kernels.reference import retention_parallel, retention_recurrent


class Backend(Enum):
    """Where an operator's implementation comes from."""

    auto = "auto"
    torch = "torch"
    apex = "apex"


@dataclass
class KernelsConfig:
    """How each operator is computed."""

    retention: Backend = Backend.auto
    "Retention, all three forms: auto or torch."
    rms_norm: Backend = Backend.auto
    "RMSNorm: auto, torch, or apex (NVIDIA apex's FusedRMSNorm; CUDA only)."


@dataclass(frozen=True)
class Kernels:
    """The chosen operators. A model holds one of these and never asks again."""

    retention_parallel: Callable
    retention_chunkwise: Callable
    retention_recurrent: Callable
    rms_norm: Callable
    description: str
    "What was taken, in one line, for the log."


def _always(device: torch.device) -> str | None:
    return None


# (operator, backend) -> (why it cannot be used on a device or None, how to load its callables). The
# order of rows is the order of preference of `auto`.
TABLE: dict[tuple[str, Backend], tuple[Callable, Callable]] = {
    ("retention", Backend.torch): (
        _always,
        lambda: {
            "retention_parallel": retention_parallel,
            "retention_chunkwise": retention_chunkwise,
            "retention_recurrent": retention_recurrent,
        },
    ),
    ("rms_norm", Backend.apex): (missing_apex, lambda: {"rms_norm": load_rms_norm()}),
    ("rms_norm", Backend.torch): (_always, lambda: {"rms_norm": rms_norm}),
}


def select_kernels(
    config: KernelsConfig | None = None, device: torch.device | str = "cpu"
) -> Kernels:
    """Picks every operator once. Raises ValueError, naming the key and the remedy, where a backend
    asked for by name does not exist for an operator or is missing on this machine."""
    config = config or KernelsConfig()
    device = torch.device(device)
    operators: dict[str, Callable] = {}
    taken = []
    for operator in ("retention", "rms_norm"):
        wanted = getattr(config, operator)
        known = [backend for name, backend in TABLE if name == operator]
        if wanted is Backend.auto:
            wanted = next(b for b in known if TABLE[operator, b][0](device) is None)
        elif wanted not in known:
            names = ", ".join(["auto", *(b.value for b in known)])
            raise ValueError(
                f"kernels.{operator}={wanted.value}: there is no {wanted.value} backend for "
                f"{operator}; set kernels.{operator} to one of {names}"
            )
        missing, load = TABLE[operator, wanted]
        if reason := missing(device):
            raise ValueError(
                f"kernels.{operator}={wanted.value}: {reason}; or set kernels.{operator}=auto"
            )
        operators |= load()
        taken.append(f"{operator}={wanted.value}")
    return Kernels(**operators, description=" ".join(taken))
