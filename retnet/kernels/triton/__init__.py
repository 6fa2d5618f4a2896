"""The door to the Triton kernels: whether they can run, and how they are loaded. Nothing here
imports Triton, so the seam may import this file anywhere; an exported folder carries it alone."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch


def missing_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot be used on `device`, as half a sentence; None when they can.

    With Triton's own TRITON_INTERPRET=1 they run on a CPU too, thousands of times slower: for
    tests.
    """
    if "__path__" not in globals():  # one file of an exported folder, not the package
        return "the Triton kernels are not part of an exported model (install the retnet package)"
    if find_spec("triton") is None:
        return "Triton is not installed (it comes with PyTorch's builds for CUDA and ROCm)"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton kernels need a CUDA or ROCm device and this run is on {device.type}"
    return None


def missing_retention(device: torch.device) -> str | None:
    """The same of the kernels of retention, which need some shared memory."""
    if reason := missing_triton(device):
        return reason
    return import_module(f"{__name__}.chunkwise_tiles").missing_tiles(device)


def load_retention() -> dict[str, Callable]:
    """The three forms by name, with the signatures and meaning of `retnet/kernels/reference.py`."""
    return (
        _load("chunkwise", "retention_parallel")
        | _load("chunkwise", "retention_chunkwise")
        | _load("recurrent", "retention_recurrent")
    )


def load_rms_norm() -> Callable:
    """`rms_norm`, with the signature and meaning of `retnet/kernels/norms.py`."""
    return _load("norms", "rms_norm")["rms_norm"]


def load_elementwise() -> dict[str, Callable]:
    """The other elementwise operators by name, with the signatures and meaning of
    `retnet/kernels/norms.py`, `gates.py` and `rotation.py`."""
    return (
        _load("norms", "add_rms_norm")
        | _load("gated_norm", "gated_rms_norm")
        | _load("gates", "swiglu")
        | _load("rotation", "rotate")
    )


def load_loss() -> dict[str, Callable]:
    """`cross_entropy_rows` by name, as in `retnet/kernels/linear_cross_entropy.py`."""
    return _load("cross_entropy", "cross_entropy_rows")


def load_update() -> dict[str, Callable]:
    """`adamw_step` by name; torch's own has no function of ours."""
    return _load("adamw", "adamw_step")


def _load(module: str, name: str) -> dict[str, Callable]:
    # not an import statement: an exported folder would carry the kernels
    return {name: getattr(import_module(f"{__name__}.{module}"), name)}
