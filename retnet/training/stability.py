"""What a step is judged by before it moves a weight: the losses and gradient norms of late.

The statistics are tensors on the device, so that the host waits for none of them, and a limit is a
pure function of the steps before. What becomes of a refused step is unread.py's to say, and of a
run that has too many train.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

MAD_TO_SIGMA = 1.4826
"""The median distance from the median, times this, is a normal distribution's sigma."""
LEAST_LOSS_SPREAD, LEAST_NORM_SPREAD = 0.02, 0.25
"""Spreads below these count as these: of losses in nats, of norms in natural logarithms."""


class Mode(Enum):
    """What a run does about bad steps. Lower case, because that is how YAML says it."""

    off = "off"
    skip = "skip"
    rollback = "rollback"


@dataclass
class StabilityConfig:
    """What a run does when a loss or a gradient is not finite, or far above those of late."""

    mode: Mode = Mode.skip
    """off: a loss or gradient that is not finite ends the run, spikes are trained on. skip: such a
    step moves no weight. rollback: and after `strikes` of them the run goes back to its last good
    checkpoint, and on with the data that comes after."""
    window: int = 128
    """Steps whose losses and gradient norms a step is judged by, and within which strikes count."""
    spike: float = 8.0
    """How far above the window's median is too far, in standard deviations; 0: nothing finite."""
    strikes: int = 3
    """skip: so many steps that are not finite, within a window, end the run. rollback: so many
    refused ones of either kind send it back."""
    max_rollbacks: int = 3
    """How often a run may go back; then it ends."""

    def __post_init__(self) -> None:
        if self.window < 8:
            raise ValueError(f"stability.window is {self.window}; statistics need at least 8.")
        if self.spike < 0.0:
            raise ValueError(f"stability.spike is {self.spike}; it must be 0 (off) or more.")
        if self.strikes < 1:
            raise ValueError(f"stability.strikes is {self.strikes}; it must be at least 1.")
        if self.max_rollbacks < 0:
            raise ValueError(f"stability.max_rollbacks is {self.max_rollbacks}; it must be >= 0.")


class Limits(NamedTuple):
    """What a step's loss and norm must not be above, and what they usually are; float64 scalars on
    the device, infinite while too little was seen."""

    loss: Tensor
    loss_median: Tensor
    norm: Tensor
    norm_median: Tensor


class Stability:
    """The window of a run. All ranks hold the same numbers."""

    def __init__(
        self, config: StabilityConfig, device: torch.device, recent: dict[str, list[float]]
    ) -> None:
        """`recent`: what `recent()` gave, {} at the beginning."""
        self._config = config
        self._losses = self._filled(recent.get("losses", []), device)
        self._norms = self._filled(recent.get("norms", []), device)

    def limits(self) -> Limits:
        """Those of the next step; waits for nothing."""
        spike, fewest = self._config.spike, self._config.window // 4
        loss, median, spread = _robust(self._losses, LEAST_LOSS_SPREAD, spike, fewest)
        norm, log_median, _ = _robust(self._norms.log(), LEAST_NORM_SPREAD, spike, fewest)
        return Limits(loss, median, norm.exp(), log_median.exp())

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Takes a step's numbers (scalars on the device) into the window, where they are finite;
        refused or not, so that a real change of level is accepted in the end. Waits for nothing."""
        self._losses = _pushed(self._losses, loss)
        self._norms = _pushed(self._norms, norm)

    def recent(self) -> dict[str, list[float]]:
        """The window for the train state, oldest first; waits for the device."""
        return {
            name: [value for value in window.tolist() if math.isfinite(value)]
            for name, window in (("losses", self._losses), ("norms", self._norms))
        }

    def _filled(self, values: list[float], device: torch.device) -> Tensor:
        """[window], nan where nothing was seen yet: at the front, where the oldest are."""
        kept = values[-self._config.window :]
        missing = [math.nan] * (self._config.window - len(kept))
        return torch.tensor(missing + kept, dtype=torch.float64, device=device)


def _pushed(window: Tensor, value: Tensor) -> Tensor:
    """The window with a value at its end, or as it was where that is not finite."""
    value = value.detach().double().reshape(1)
    return torch.where(value.isfinite(), torch.cat([window[1:], value]), window)


def _robust(
    window: Tensor, least: float, spike: float, fewest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(limit, median, spread) of a window: infinite with fewer than `fewest` values."""
    median = _median(window)
    spread = (MAD_TO_SIGMA * _median((window - median).abs())).clamp(min=least)
    enough = window.isfinite().sum() >= max(fewest, 1)
    limit = median + spike * spread if spike else torch.full_like(median, math.inf)
    return torch.where(enough, limit, math.inf), median, spread


def _median(window: Tensor) -> Tensor:
    """The lower median of what is finite. torch's nanmedian asks the host how many that are."""
    finite = window.isfinite()
    ordered = torch.where(finite, window, math.inf).sort().values
    middle = ((finite.sum() - 1) // 2).clamp(min=0).reshape(1)
    return ordered.gather(0, middle).reshape(())


def strikes_within(strikes: list[int], step: int, window: int) -> list[int]:
    """Those that still count after `step`."""
    return [each for each in strikes if step - each < window]
