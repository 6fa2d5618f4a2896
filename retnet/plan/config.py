"""What a plan must be told: the machines, how well they are used, and their price. Read by
`python train.py ... --plan` alone; a run ignores it."""

from dataclasses import dataclass


@dataclass
class PlanConfig:
    """The machines that a plan is for."""

    devices: int = 0
    """Devices of the planned run; 0: as many as are launched."""
    device: str = ""
    """Its name, as on a data sheet ("NVIDIA H200"), for the peak in FLOP/s; empty: as here."""
    memory: float = 0.0
    """Of one device, in GB (10^9 bytes); 0: this machine's."""
    mfu: float = 0.4
    """Share of the peak that the steps are expected to reach, by which time is planned."""
    price: float = 0.0
    """Of one device for one hour, in `plan.currency`; 0: no costs are planned."""
    currency: str = "$"
    """What the price is in."""
    data_tokens: int = 0
    """Tokens of the data, for the number of epochs; 0: as prepared data says, else unknown."""

    def __post_init__(self) -> None:
        for key in ("devices", "memory", "price", "data_tokens"):
            if getattr(self, key) < 0:
                raise ValueError(f"plan.{key}={getattr(self, key)}: needed at least 0")
        if not 0.0 < self.mfu <= 1.0:
            raise ValueError(f"plan.mfu={self.mfu}: needed a share above 0 and up to 1, as 0.4")
