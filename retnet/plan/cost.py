"""Time and money of a run, from its arithmetic and from how well a device is expected to be used.
An expectation, not a measurement: `plan.mfu` is what it stands on.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """What a run takes; None where the device's peak or price is not known."""

    step_seconds: float | None
    seconds: float | None
    """Of all steps."""
    money: float | None


def cost_of(
    flops_per_step: float,
    steps: int,
    *,
    devices: int,
    peak: float | None,
    mfu: float,
    price: float,
) -> Cost:
    """peak: FLOP/s of one device; mfu: the share of it that a step reaches; price: of one device
    for an hour."""
    if not peak:
        return Cost(None, None, None)
    step = flops_per_step / (devices * peak * mfu)
    hours = step * steps / 3600
    return Cost(step, step * steps, devices * hours * price if price else None)


def in_words(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if round(seconds) < 600:
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes} min {seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def bytes_in_words(count: float) -> str:
    """Bytes in decimal units, as disks and devices are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def count_in_words(count: float) -> str:
    """A count with a unit: 3.4 million, 1.3 billion."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"
