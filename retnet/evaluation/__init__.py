"""What a model can do, asked while it trains.

`KINDS` are the questions beside the loss on the held-out sets, by the names of their clocks
(`evaluation.<kind>_every`).
"""

from collections.abc import Callable

from retnet.evaluation.asked import Asked, Ended, Result
from retnet.evaluation.passkey import find_passkeys
from retnet.evaluation.positions import measure_positions
from retnet.evaluation.samples import write_samples
from retnet.evaluation.tasks import run_tasks
from retnet.training.undisturbed import undisturbed

KINDS: dict[str, Callable[[Asked], Result]] = {
    "samples": write_samples,
    "positions": measure_positions,
    "passkey": find_passkeys,
    "tasks": run_tasks,
}


def ask(kind: str, asked: Asked) -> Result | None:
    """What came out, the same on every rank; None where a request to stop came first. Nothing of
    the model's or of training's is changed. Collective."""
    try:
        with undisturbed(asked.engine):
            return KINDS[kind](asked)
    except Ended:
        return None
