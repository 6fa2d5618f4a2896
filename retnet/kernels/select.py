"""The seam: which implementation of each operator a model runs on, chosen once, in one table.

`model=` says what is computed, `kernels=` says how; a choice here never changes a result beyond
rounding. Not here: the operators themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch

from retnet.kernels.apex import load_rms_norm, missing_apex
from retnet.kernels.chunkwise import retention_chunkwise
from retnet.kernels.gates import swiglu
from retnet.kernels.linear_cross_entropy import cross_entropy_rows
from retnet.kernels.norms import add_rms_norm, gated_rms_norm, rms_norm
from retnet.kernels.recurrent import retention_recurrent
from retnet.kernels.reference import retention_parallel
from retnet.kernels.rotation import rotate
from retnet.kernels.triton import load_elementwise as triton_elementwise
from retnet.kernels.triton import load_loss as triton_loss
from retnet.kernels.triton import load_retention as triton_retention
from retnet.kernels.triton import load_rms_norm as triton_rms_norm
from retnet.kernels.triton import load_update as triton_update
from retnet.kernels.triton import missing_retention, missing_triton


class Backend(Enum):
    """Where an operator's implementation comes from."""

    auto = "auto"
    torch = "torch"
    triton = "triton"
    apex = "apex"


@dataclass
class KernelsConfig:
    """How each operator is computed."""

    retention: Backend = Backend.auto
    "Retention, all three forms: auto, torch or triton."
    rms_norm: Backend = Backend.auto
    "RMSNorm: auto, torch, triton (CUDA and ROCm), or apex (NVIDIA's FusedRMSNorm; CUDA only)."
    loss: Backend = Backend.auto
    "Cross entropy of rows of logits with its gradient: auto, torch or triton."
    update: Backend = Backend.auto
    "The optimizer's pass over the weights (optimizer.update=fused): auto, torch or triton."
    elementwise: Backend = Backend.auto
    "Residual sum with RMSNorm, head norm with gate, SwiGLU, rotation: auto, torch or triton."
    fused_projections: bool = True
    """q, k, v and gate as one weight, and the feed-forward's two inner ones as another: fewer and
    larger products in training. Files hold the public, separate weights either way."""


@dataclass(frozen=True)
class Kernels:
    """The chosen operators. A model holds one of these and never asks again."""

    retention_parallel: Callable
    retention_chunkwise: Callable
    retention_recurrent: Callable
    rms_norm: Callable
    add_rms_norm: Callable
    gated_rms_norm: Callable
    swiglu: Callable
    rotate: Callable
    cross_entropy_rows: Callable
    adamw_step: Callable | None
    "None: torch's own."
    fused_projections: bool
    "Whether q, k, v, g and the two inner feed-forward weights are one parameter each."
    description: str
    "What was taken, in one line, for the log."


def _always(device: torch.device) -> str | None:
    return None


# (operator, backend) -> (why it cannot be used on a device or None, how to load its callables). The
# order of rows is the order of preference of `auto`.
TABLE: dict[tuple[str, Backend], tuple[Callable, Callable]] = {
    ("retention", Backend.triton): (missing_retention, triton_retention),
    ("retention", Backend.torch): (
        _always,
        lambda: {
            "retention_parallel": retention_parallel,
            "retention_chunkwise": retention_chunkwise,
            "retention_recurrent": retention_recurrent,
        },
    ),
    ("rms_norm", Backend.apex): (missing_apex, lambda: {"rms_norm": load_rms_norm()}),
    ("rms_norm", Backend.triton): (missing_triton, lambda: {"rms_norm": triton_rms_norm()}),
    ("rms_norm", Backend.torch): (_always, lambda: {"rms_norm": rms_norm}),
    ("loss", Backend.triton): (missing_triton, triton_loss),
    ("loss", Backend.torch): (_always, lambda: {"cross_entropy_rows": cross_entropy_rows}),
    ("update", Backend.triton): (missing_triton, triton_update),
    ("update", Backend.torch): (_always, lambda: {"adamw_step": None}),
    ("elementwise", Backend.triton): (missing_triton, triton_elementwise),
    ("elementwise", Backend.torch): (
        _always,
        lambda: {
            "add_rms_norm": add_rms_norm,
            "gated_rms_norm": gated_rms_norm,
            "swiglu": swiglu,
            "rotate": rotate,
        },
    ),
}


def select_kernels(
    config: KernelsConfig | None = None, device: torch.device | str = "cpu"
) -> Kernels:
    """Picks every operator once. Raises ValueError, naming the key and the remedy, where a backend
    asked for by name does not exist for an operator or is missing on this machine."""
    config = config or KernelsConfig()
    device = torch.device(device)
    operators: dict[str, Callable] = {}
    taken: dict[str, Backend] = {}
    for operator in ("retention", "rms_norm", "elementwise", "loss", "update"):
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
        taken[operator] = wanted
    norm, group = taken["rms_norm"], taken["elementwise"]
    if norm is not group and (config.rms_norm is not Backend.auto or group is Backend.torch):
        # The norm asked for by name is the one inside the larger operators too; plain torch has no
        # fused one to lose.
        for name, operator in (("add_rms_norm", add_rms_norm), ("gated_rms_norm", gated_rms_norm)):
            operators[name] = partial(operator, norm=operators["rms_norm"])
    return Kernels(
        **operators,
        fused_projections=config.fused_projections,
        description=" ".join(f"{operator}={backend.value}" for operator, backend in taken.items()),
    )
