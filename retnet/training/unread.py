"""The steps that are queued and that nobody has read: what keeps the loop from waiting for the
device at every step. Reading moves the run's token count and tells what went wrong; it changes no
weight, and when to read is the loop's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retnet.training.metrics import Metrics
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, QueuedStep, StepResult, read_steps

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MAX_UNREAD = 64
"""Steps after which they are read, whatever is logged: unread steps keep their micro-batches."""


class UnreadSteps:
    """The steps since the last reading, in order."""

    def __init__(self, engine: DeepSpeedEngine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._queued: list[QueuedStep] = []
        self._last: tuple[QueuedStep, StepResult] | None = None

    def add(self, queued: QueuedStep, state: TrainState) -> None:
        """Keeps a step for the next reading; reads at once where the step was skipped, or where
        too many wait. Collective then, with the errors of `read`."""
        self._queued.append(queued)
        if queued.skipped or len(self._queued) == MAX_UNREAD:
            self.read(state)

    def read(self, state: TrainState) -> dict[str, float]:
        """Waits for the steps, counts their tokens in `state`, and returns what is worth logging
        of the last step ({} before the first). Collective.

        Raises:
            NonFiniteError: one was bad; the event is written, no weight has moved since.
        """
        try:
            results = read_steps(self._engine, self._queued)
        except NonFiniteError as error:
            self._metrics.event("diverged", step=error.step, why=str(error))
            raise
        for queued, result in zip(self._queued, results, strict=True):
            state.tokens += result.tokens
            if result.skipped:
                why = "float16 overflow; the loss scale was lowered"
                self._metrics.event("skipped", step=queued.step, why=why)
            self._last = queued, result
        self._queued.clear()
        if self._last is None:
            return {}
        queued, result = self._last
        measured = {"loss": result.loss, "grad_norm": result.grad_norm}
        return {"tokens": state.tokens, "learning_rate": queued.learning_rate} | measured
