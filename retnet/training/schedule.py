"""The learning rate as a pure function of the step. It holds no state and touches no optimizer."""

import math
from dataclasses import dataclass
from enum import Enum


class ScheduleKind(Enum):
    """The shape of the curve after warmup. Lower case, because that is how YAML says it."""

    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"
    constant = "constant"


@dataclass
class ScheduleConfig:
    """How the learning rate changes over a run."""

    kind: ScheduleKind = ScheduleKind.cosine
    """cosine or linear: from the peak down over the whole run; wsd: warmup, stable, then a
    linear decay at the end; constant: the peak throughout."""
    warmup_steps: int = 100
    """Steps of linear rise from zero; the last of them takes the peak rate."""
    final_fraction: float = 0.1
    """Rate of the last step, as a fraction of the peak (constant: not used)."""
    decay_fraction: float = 0.2
    """wsd: the share of all steps, at the end, in which the rate falls."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(
                f"schedule.warmup_steps is {self.warmup_steps}; it must be at least 0."
            )
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(
                f"schedule.final_fraction is {self.final_fraction}; it is a fraction of the peak, "
                "from 0 to 1."
            )
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ValueError(
                f"schedule.decay_fraction is {self.decay_fraction}; it is a share of the steps, "
                "above 0 and at most 1."
            )


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of the step that is taken after `step` steps (0 for the first) of `steps`.

    Warmup reaches the peak exactly at its last step, and the last step of the run takes exactly
    `final_fraction * peak`; no step has rate zero unless `final_fraction` is. A run shorter than
    its warmup ends inside it. Beyond the end the last rate holds. WSD: Hu et al. 2024
    (MiniCPM, arXiv 2404.06395), with a linear decay.
    """
    done = step + 1
    if done <= config.warmup_steps:
        return peak * done / config.warmup_steps
    start = config.warmup_steps
    if config.kind is ScheduleKind.constant:
        return peak
    if config.kind is ScheduleKind.wsd:
        start = max(start, steps - round(config.decay_fraction * steps))
    progress = (done - start) / (steps - start) if steps > start else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if config.kind is ScheduleKind.cosine:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        share = 1.0 - progress
    return peak * (config.final_fraction + (1.0 - config.final_fraction) * share)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0
