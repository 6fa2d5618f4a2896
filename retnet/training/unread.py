"""The steps that are queued and that nobody has read: what keeps the loop from waiting for the
device at every step. Reading moves the run's token count and tells what went wrong, a refused step
as an event; it changes no weight, and when to read is the loop's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from retnet.training.bad_gradients import find_bad_gradients
from retnet.training.metrics import Metrics
from retnet.training.ranks import RankTimes
from retnet.training.stability import Mode, Stability, StabilityConfig, strikes_within
from retnet.training.state import TrainState
from retnet.training.step import (
    NonFiniteError,
    QueuedStep,
    StepResult,
    read_steps,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MAX_UNREAD = 64
"""Steps after which they are read, whatever is logged: unread steps keep their micro-batches."""


class UnreadSteps:
    """The steps since the last reading, in order, and what they are judged by."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        metrics: Metrics,
        config: StabilityConfig,
        straggler: float = 1.25,
    ) -> None:
        """`straggler`: as logging.straggler."""
        self._times = RankTimes(straggler)
        self._engine = engine
        self._metrics = metrics
        self._config = config
        self._queued: list[QueuedStep] = []
        self._last: tuple[QueuedStep, StepResult] | None = None
        self.stability: Stability | None = None
        """Given to each step; None with stability.mode=off."""

    def begin(self, state: TrainState) -> None:
        """From `state` on; forgets what was read before."""
        self._queued, self._last = [], None
        if self._config.mode is not Mode.off:
            self.stability = Stability(self._config, self._engine.device, state.recent)

    def add(self, queued: QueuedStep, state: TrainState) -> None:
        """Keeps a step for the next reading; reads at once where the step was skipped, or where
        too many wait. Collective then, with the errors of `read`."""
        self._queued.append(queued)
        if queued.skipped or len(self._queued) == MAX_UNREAD:
            self.read(state)

    def read(self, state: TrainState) -> dict[str, float]:
        """Waits for the steps, counts them in `state`, and returns what is worth logging of the
        last one ({} before the first). Collective.

        Raises:
            NonFiniteError: one was bad, or with stability.mode=skip too many were; the event is
                written, no weight has moved since.
        """
        for queued in self._queued:  # first: those of a step that ends the run are worth most
            if queued.norms is not None:  # a line of its own: the step may not be logged
                self._metrics.log(queued.step + 1, queued.norms.read())
        try:
            results = read_steps(self._engine, self._queued)
            for queued, result in zip(self._queued, results, strict=True):
                state.tokens += result.tokens
                self._times.add(result.seconds)
                if result.skipped or result.refused:
                    self._refused(queued, result, state)
                self._last = queued, result
        except NonFiniteError as error:
            self._metrics.event("diverged", step=error.step, why=str(error))
            raise
        self._queued.clear()
        if self.stability is not None:
            state.recent = self.stability.recent()
        if self._last is None:
            return {}
        queued, result = self._last
        measured = {"loss": result.loss, "grad_norm": result.grad_norm}
        if state.skipped:
            measured["skipped_steps"] = state.skipped
        return {"tokens": state.tokens, "learning_rate": queued.learning_rate} | measured

    def times(self, step: int) -> dict[str, float]:
        """What the ranks' own work took since the last time this was asked, to be logged at `step`;
        says which rank the others wait for, once an hour. The same on every rank; collective."""
        values, slow = self._times.look()
        if slow is not None:
            self._metrics.event("straggler", step=step, **slow._asdict())
            self._metrics.say(
                f"rank {slow.rank} ({slow.host}) is slow: {slow.factor:.2f} times what the others' "
                "forward passes take"
            )
        return values

    def _refused(self, queued: QueuedStep, result: StepResult, state: TrainState) -> None:
        """Counts and tells of a step that moved no weight."""
        if result.refused is None:
            why = "float16 overflow; the loss scale was lowered"
            self._metrics.event("skipped", step=queued.step, why=why)
            return
        state.skipped += 1
        numbers = {"loss": result.loss, "grad_norm": result.grad_norm, "count": state.skipped}
        self._metrics.event("skipped", step=queued.step, why=result.refused, **numbers)
        self._metrics.say(f"step {queued.step + 1} is skipped: {result.refused}")
        config, rolls = self._config, self._config.mode is Mode.rollback
        if rolls or not result.finite:
            struck = strikes_within(state.strikes, queued.step, config.window)
            state.strikes = [*struck, queued.step]
        if not rolls and not result.finite and len(state.strikes) >= config.strikes:
            where = ""
            if "gradient" in result.refused:
                where = find_bad_gradients(self._engine, queued.micro_batches, queued.num_items)
            raise NonFiniteError(
                queued.step,
                f"{result.refused}{where}, such steps: {len(state.strikes)} of the last "
                f"{config.window} (stability.strikes={config.strikes})",
            )
