"""What every kind of question is given and gives back, how ranks share the work, and how the model
is read in pieces. No kind of question is here, and nothing that changes the model.

A kind is a function `(Asked) -> Result`, called on every rank under `undisturbed`. Each rank makes
as many forward passes as every other, because ZeRO-3 gathers the weights in each of them: work is
dealt out evenly, and what is missing to an even share is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from retnet.evaluation.config import EvaluationConfig
from retnet.training.evaluate import PURE

if TYPE_CHECKING:
    from retnet.training.engine import DeepSpeedEngine

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Ended(Exception):
    """A request to stop came in the middle; raised on every rank at the same forward pass."""


class Tokenizer(Protocol):
    """Text to ids and back."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class LongTexts(Protocol):
    """Held-out documents under a name, in rows of any length."""

    name: str
    tokens: int

    def long_rows(self, length: int, count: int) -> tuple[list[dict[str, Tensor]], bool]: ...


class Asked(NamedTuple):
    """What a kind of question is asked with; the same on every rank, but for `rank`."""

    engine: DeepSpeedEngine
    tokenizer: Tokenizer
    validation: Sequence[LongTexts]
    config: EvaluationConfig
    seed: int
    step: int
    length: int
    """Tokens of a row in training."""
    rank: int
    world_size: int
    gather: Callable[[Any], list]
    """Every rank's value, on every rank; collective."""
    stop: Callable[[], bool]
    """Whether to stop, with the same answer on every rank; also tells the watchdog that all is
    well. Collective."""
    tasks: dict[str, Any] | None = None
    """lm-eval's tasks, opened (`tasks.open_tasks`)."""

    def forward(self, ids: Tensor, state: Any = None, **arguments: Any) -> Any:
        """The module's output for new tokens ids [B, T] after `state`, with the state after them.
        Raises Ended. Collective."""
        if self.stop():
            raise Ended
        ids = ids.to(self.engine.device)
        return self.engine(input_ids=ids, past_key_values=state, use_cache=True, **arguments)

    def nats(self, ids: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The sum of the losses at `targets` [B, T] (-100: none) as a float64 scalar on the device,
        and the state after ids [B, T], in the chunkwise form. Collective."""
        one = torch.ones((), device=self.engine.device)  # the module's divisor: a sum stays a sum
        targets = targets.to(self.engine.device)
        settings = {"shift_labels": targets, "num_items_in_batch": one, **PURE}
        output = self.forward(ids, state, forward_mode="chunkwise", **settings)
        return output.loss.double(), output.past_key_values

    def deal(self, items: Sequence[Item], work: Callable[[Item], Answer]) -> list[Answer]:
        """What `work` makes of each item, on every rank, each item done by one of them.

        `work` must make equally many forward passes for every item. Collective.
        """
        if not items:
            return []
        share = -(-len(items) // self.world_size)
        mine = [
            work(items[min(turn * self.world_size + self.rank, len(items) - 1)])
            for turn in range(share)
        ]
        ranks = self.gather(mine)
        return [ranks[at % self.world_size][at // self.world_size] for at in range(len(items))]


class Result(NamedTuple):
    """What came out, the same on every rank."""

    values: dict[str, float]
    """Numbers, for metrics.jsonl."""
    details: list[dict[str, Any]]
    """Texts, curves and grids, for evaluations.jsonl: the fields of one line each."""
    words: str = ""
    """What the user should know of how it was measured; empty: nothing."""
