"""The loss on held-out rows, by all ranks. It changes nothing: not the weights, not the random
numbers of training, not the module's mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.step import IGNORED, to_device
from retnet.training.undisturbed import undisturbed

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


PURE = {"z_loss_coeff": 0.0, "label_smoothing": 0.0}
"""What steadies training is no part of a score."""


@dataclass(frozen=True)
class EvaluationResult:
    """What the module scored on a set of rows; the same on every rank."""

    loss: float
    """Mean over the targets, in nats."""
    nats: float
    """Sum over the targets, in nats."""
    tokens: int
    """Targets that counted."""

    @property
    def bits(self) -> float:
        """The sum over the targets in bits."""
        return self.nats / math.log(2)


class RowSet(Protocol):
    """Held-out documents: their name, their size in bytes, their rows in batches."""

    name: str
    bytes: int

    def batches(self) -> Iterable[dict[str, Tensor]]: ...


def score(
    engine: DeepSpeedEngine, sets: Iterable[RowSet], stop: Callable[[], bool] | None = None
) -> dict[str, float] | None:
    """Nats per token and bits per byte on each set; None where `stop` ended it. Collective."""
    scores = {}
    for held_out in sets:
        result = evaluate(engine, held_out.batches(), stop)
        if result is None:
            return None
        scores[f"val/{held_out.name}/loss"] = result.loss
        scores[f"val/{held_out.name}/bits_per_byte"] = result.bits / held_out.bytes
    return scores


def evaluate(
    engine: DeepSpeedEngine,
    batches: Iterable[dict[str, Tensor]],
    stop: Callable[[], bool] | None = None,
) -> EvaluationResult | None:
    """Sums token losses over the batches of all ranks, in float64; collective.

    Every rank brings the same number of batches (the module's keyword arguments, `shift_labels`
    among them); a short rank fills up with rows whose labels are all -100. The score is pure cross
    entropy: the module is told to leave out z-loss and label smoothing. `stop` is asked before each
    batch, with the same answer on every rank; None where it said yes.

    Raises:
        ValueError: there was no target in any batch.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)  # nats, targets
    stopped = False
    one = torch.ones((), device=engine.device)  # the module's divisor: keeps the sum a sum
    with undisturbed(engine, stance="default"):
        for batch in batches:
            if stopped := stop is not None and stop():
                break
            batch = to_device(batch, engine.device)
            totals[0] += engine(**batch, num_items_in_batch=one, **PURE).loss
            totals[1] += (batch["shift_labels"] != IGNORED).sum()
    if stopped:
        return None
    dist.all_reduce(totals)
    nats, tokens = totals.tolist()
    if tokens == 0:
        raise ValueError("the evaluation rows hold no target: the held-out split is empty.")
    return EvaluationResult(nats / tokens, nats, int(tokens))
