"""What a run may take of its machines: time, patience, and the network that it uses."""

from dataclasses import dataclass


@dataclass
class LimitsConfig:
    """How long a run may go on, and stand still."""

    wall_clock: float = 0.0
    """Minutes after which it saves and leaves as on a signal, from the start of its process on;
    0: never."""
    hang: float = 1800.0
    """Seconds without a step, a batch of an evaluation or a checkpoint, after which every rank
    writes its stacks into the run folder and the run ends with code 4; 0: it waits for ever."""
    interface: str = ""
    """The network interface over which the ranks talk, as eth0; empty: the one that leads to
    MASTER_ADDR, where they meet."""

    def __post_init__(self) -> None:
        for key in ("wall_clock", "hang"):
            if getattr(self, key) < 0.0:
                raise ValueError(f"limits.{key} is {getattr(self, key)}; it must be 0 or more.")
