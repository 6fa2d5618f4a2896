"""How fast: the operators of a retentive model and the seam that chooses among their backends."""

from retnet.kernels.select import Backend, Kernels, KernelsConfig, select_kernels

__all__ = ["Backend", "Kernels", "KernelsConfig", "select_kernels"]
