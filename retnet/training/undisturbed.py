"""A look at the model in the middle of training that leaves no trace: every question that is asked
of the engine's module between two steps is asked under this guard."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy
import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@contextmanager
def undisturbed(engine: DeepSpeedEngine, stance: str = "force_eager") -> Iterator[None]:
    """Without gradients and in eval mode; afterwards the module's mode and the random states of
    torch (CPU and this rank's GPU), Python and numpy are what they were.

    `stance`: of torch.compiler. Compiled layers run as written, because other shapes than a step's
    would be compiled, for minutes; "default" for batches that have a step's shape.
    """
    was_training = engine.module.training
    devices = [engine.device] if engine.device.type == "cuda" else []
    python, arrays = random.getstate(), numpy.random.get_state()
    engine.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance(stance),
        ):
            yield
    finally:
        engine.train(was_training)
        random.setstate(python)
        numpy.random.set_state(arrays)
