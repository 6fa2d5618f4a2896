"""One optimizer step: forward, backward, reduction, update, and the refusal of a bad one.

The loss of a step is the mean over all targets of the global batch, so neither it nor its gradient
depends on how many ranks or micro-batches the batch was cut into. It decides nothing about which
batch or which learning rate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

IGNORED = -100
"""The label of a position that is no target, torch's convention."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient was not finite; raised on every rank, before weights moved."""


@dataclass(frozen=True)
class StepResult:
    """What a step did; the same on every rank."""

    loss: float
    """Mean over the global batch's targets, in nats."""
    grad_norm: float
    """L2 norm of the whole gradient before clipping."""
    tokens: int
    """Targets that counted, over all ranks."""
    skipped: bool = False
    """float16 only: the gradient overflowed, the loss scale was lowered, no weight moved."""


def train_step(
    engine: DeepSpeedEngine,
    micro_batches: list[dict[str, Tensor]],
    *,
    learning_rate: float,
    seed: int,
    step: int,
) -> StepResult:
    """Takes the step that follows `step` steps already taken (0 for the first); collective.

    Each micro-batch is the module's keyword arguments, `shift_labels` among them. The module adds
    up its token losses and divides by `num_items_in_batch` (a float32 scalar). The host waits for
    the device once, after the update was queued; what DeepSpeed waits for comes on top.

    Raises:
        NonFiniteError: on every rank, with the weights as they were.
    """
    _check_accumulation(engine, micro_batches)
    world_size = dist.get_world_size()
    micro_batches = [to_device(batch, engine.device) for batch in micro_batches]
    targets = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in micro_batches])
    targets = targets.sum()
    dist.all_reduce(targets)
    # DeepSpeed averages over micro-batches and ranks; dividing the global count by their number
    # turns that average into (sum of all token losses) / (all targets). A batch without any
    # target has a loss of zero.
    parts = len(micro_batches) * world_size
    num_items = targets.clamp(min=1).float() / parts
    seed_step(seed, step)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch in micro_batches:
        loss = engine(**batch, num_items_in_batch=num_items).loss
        total += loss.detach()
        # Times exactly one where the loss is finite. Where it is not, the gradient becomes nan on
        # this rank and so, once reduced, on all: every stage then refuses the step by itself, and
        # the host need not look at the loss before the update.
        engine.backward(loss * (1.0 + 0.0 * loss.detach()))
        if batch is not micro_batches[-1]:
            engine.step()
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    engine.step()
    norm = torch.as_tensor(engine.get_global_grad_norm(), device=engine.device)
    losses = [torch.empty_like(total) for _ in range(world_size)]
    dist.all_gather(losses, total)
    numbers = torch.stack([*losses, norm.double(), targets.double()]).tolist()
    *by_rank, grad_norm, tokens = numbers
    _check_losses(by_rank, step)
    skipped = not engine.was_step_applied()
    if skipped and not engine.fp16_enabled():
        seed_step(seed, step)
        where = _find_bad_gradients(engine, micro_batches, num_items)
        raise NonFiniteError(
            f"step {step + 1}: the loss is finite and the gradient is not{where}; "
            "no weight has moved."
        )
    return StepResult(sum(by_rank) / parts, grad_norm, int(tokens), skipped)


def _check_accumulation(engine: DeepSpeedEngine, micro_batches: list[dict[str, Tensor]]) -> None:
    expected = engine.gradient_accumulation_steps()
    assert len(micro_batches) == expected, (
        f"a step takes {expected} micro-batches on each rank and got {len(micro_batches)}"
    )


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch with its tensors on `device`."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def seed_step(seed: int, step: int) -> None:
    """Makes what the step draws (dropout) a function of seed, step and rank, not of history."""
    digest = hashlib.blake2b(f"{seed} {step} {dist.get_rank()}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)  # torch takes 63 bits


def _find_bad_gradients(
    engine: DeepSpeedEngine, micro_batches: list[dict[str, Tensor]], num_items: Tensor
) -> str:
    """Says which rank's gradient is bad, by doing the step's backward passes again; collective.

    Once reduced, a gradient no longer tells where it came from, and looking at every gradient of
    every step would cost a wait for each; the run is about to stop, so this may be slow.
    """
    names: list[str] = []

    def watch(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: None if gradient.isfinite().all() else names.append(name)

    hooks = [
        parameter.register_hook(watch(name))
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    ]
    for batch in micro_batches:
        engine.backward(engine(**batch, num_items_in_batch=num_items).loss)
    for hook in hooks:
        hook.remove()
    first: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(first, names[0] if names else None)
    bad = [f"that of {name} on rank {rank}" for rank, name in enumerate(first) if name]
    return f" (first {', '.join(bad)})" if bad else " (in the sum over the ranks)"


def _check_losses(by_rank: list[float], step: int) -> None:
    for rank, loss in enumerate(by_rank):
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"step {step + 1}: the loss on rank {rank} is {loss}; no weight has moved."
            )
