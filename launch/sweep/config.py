"""How the points of a sweep are started: the keys `hydra.launcher.*` of `python train.py -m`."""

from dataclasses import dataclass


@dataclass
class SweepConfig:
    """How many points run at once, on what, and what ends one."""

    _target_: str = "hydra_plugins.retnet.Processes"
    at_once: int = 0
    """Points that run at the same time; 0: as many as the devices allow, on a CPU one."""
    processes: int = 1
    """Processes of one point; with GPUs, as many devices."""
    restarts: int = 0
    """How often a point that fails is started again at once."""
    objective: str = ""
    """The metric that points are compared by, the lower the better; empty: the loss on the first
    validation set."""
    prune_after: int = 0
    """From this step on, a point whose objective is above the median of at least three others' at
    its step is ended; 0: none is."""
    retry_diverged: bool = False
    """Also start again the points whose loss diverged, which the same command does alike."""
    cluster: str = ""
    """A cluster's YAML (launch/README.md): each point is a Slurm job there; empty: this machine."""

    def __post_init__(self) -> None:
        for key in ("at_once", "restarts", "prune_after"):
            if getattr(self, key) < 0:
                raise ValueError(f"hydra.launcher.{key}={getattr(self, key)}: needed at least 0")
        if self.processes < 1:
            raise ValueError(f"hydra.launcher.processes={self.processes}: needed at least 1")
