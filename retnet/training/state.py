"""Where a run stands: plain values that are stored with every checkpoint.

Everything else that is random or ordered is a pure function of the seed and these, so nothing
else has to be stored. It is not the weights and not the optimizer: those are the engine's.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainState:
    """The progress of a run; the same on every rank."""

    step: int = 0
    """Optimizer steps taken."""
    position: int = 0
    """Samples consumed by all ranks together."""
    tokens: int = 0
    """Targets that counted in the loss, over all ranks."""
    data_fingerprint: str = ""
    """What the data was, so that a run does not go on with other data unnoticed."""
    rollbacks: int = 0
    """How often the run went back to an older checkpoint and on with later data."""
    skipped: int = 0
    """Steps that were refused; of `step` all the same."""
    strikes: list[int] = field(default_factory=list)
    """The steps of late that were refused."""
    recent: dict[str, list[float]] = field(default_factory=dict)
    """The losses and gradient norms that the next step's are judged by, oldest first."""

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `as_dict`; RuntimeError where a value is missing or unknown."""
        expected = {each.name for each in fields(cls)}
        if set(values) != expected:
            raise RuntimeError(
                f"the stored training state has the values {sorted(values)}, "
                f"this version needs {sorted(expected)}."
            )
        return cls(**values)
