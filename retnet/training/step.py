"""One optimizer step: forward, backward, reduction, update, and the refusal of a bad one.

The loss of a step is the mean over all targets of the global batch, so neither it nor its gradient
depends on how many ranks or micro-batches the batch was cut into. A step is queued, not waited for;
what it came to is read later, for all unread steps at once. It decides nothing about which batch or
which learning rate, nor when to read.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from retnet.training.bad_gradients import find_bad_gradients
from retnet.training.layer_norms import (
    Norms,
    activation_squares,
    gradient_squares,
    norms_of_layers,
)
from retnet.training.norm_limit import forget_gradients, norm_of
from retnet.training.ranks import ForwardClock
from retnet.training.stability import Limits, Stability

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

IGNORED = -100
"""The label of a position that is no target, torch's convention."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient was not finite; raised on every rank, before weights moved."""

    def __init__(self, step: int, what: str) -> None:
        """`step`: steps that were taken before the bad one."""
        super().__init__(f"step {step + 1}: {what}; no weight has moved.")
        self.step = step


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
    refused: str | None = None
    """With a `Stability`: why no weight moved, in words."""
    finite: bool = True
    """Whether its loss and gradient were; a refused one may have been far too large."""
    seconds: tuple[float, ...] = field(default=(), compare=False)
    """By rank, what its forward passes took."""


@dataclass(frozen=True)
class QueuedStep:
    """A step that the device may still be at; `read_steps` says what it came to."""

    loss: Tensor
    """This rank's sum over its micro-batches, float64 scalar on the device."""
    grad_norm: Tensor
    """Scalar on the device; not finite where the step was refused."""
    targets: Tensor
    """Targets that counted, over all ranks: integer scalar on the device."""
    skipped: bool
    """The stock update looked at the gradient and refused it. To be read before the next step,
    which would move weights: DeepSpeed forgets."""
    step: int
    """Steps that were taken before this one."""
    learning_rate: float
    """Of this step."""
    seed: int
    """Of the run."""
    micro_batches: list[dict[str, Tensor]]
    """On the device: what finds the bad gradient, if there is one."""
    mean: Tensor | None = None
    """Over all ranks, the loss that was judged by `limits`; float64 scalar on the device."""
    limits: Limits | None = None
    """What the step was judged by; None: by whether it was finite alone."""
    norms: Norms | None = None
    """By layer, where they were asked for."""
    clock: ForwardClock | None = None
    """What this rank's forward passes took."""

    @property
    def num_items(self) -> Tensor:
        """What the module divided by."""
        return _num_items(self.targets, len(self.micro_batches))


def train_step(
    engine: DeepSpeedEngine,
    micro_batches: list[dict[str, Tensor]],
    *,
    learning_rate: float,
    seed: int,
    step: int,
    stability: Stability | None = None,
    norms: bool = False,
) -> QueuedStep:
    """Queues the step that follows `step` steps already taken (0 for the first); collective.

    Each micro-batch is the module's keyword arguments, `shift_labels` among them. The module adds
    up its token losses and divides by `num_items_in_batch` (a float32 scalar). With the fused
    update the host waits for nothing; a gradient that is not finite then moves no weight, moment
    or counter on any rank, neither in this step nor, without `stability`, in any later one of this
    engine. With it a step is refused too where its loss or norm is above the limits. `norms`:
    also by layer, which costs a forward pass of one row.
    """
    _check_accumulation(engine, micro_batches)
    micro_batches = [to_device(batch, engine.device) for batch in micro_batches]
    targets = torch.stack([(batch["shift_labels"] != IGNORED).sum() for batch in micro_batches])
    targets = targets.sum()
    dist.all_reduce(targets)
    num_items = _num_items(targets, len(micro_batches))
    limits = stability.limits() if stability is not None else None
    mean, layers, clock = None, None, ForwardClock(engine.device)
    activation = activation_squares(engine, micro_batches[0]) if norms else {}
    engine.optimizer.norm_limit = limits.norm if limits is not None else None
    seed_step(seed, step)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch in micro_batches:
        last = batch is micro_batches[-1]
        with clock:
            loss = engine(**batch, num_items_in_batch=num_items).loss
        total += loss.detach()
        if limits is None:
            gate = 1.0 + 0.0 * loss.detach()
        elif last:
            mean, gate = _judge(total, len(micro_batches), limits.loss, loss.dtype)
        else:
            gate = 1.0
        # Times exactly one where the loss is good. Where it is not, the gradient becomes nan on
        # this rank and so, once reduced, on all: every stage then refuses the step by itself, and
        # the host need not look at the loss before the update.
        engine.backward(loss * gate)
        if not last:
            engine.step()
    if norms:
        layers = norms_of_layers(gradient_squares(engine), activation)
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    engine.step()
    norm = norm_of(engine)
    if stability is not None:
        stability.add(mean, norm)
    if skipped := not engine.was_step_applied():
        forget_gradients(engine)
    given = (skipped, step, learning_rate, seed, micro_batches)
    return QueuedStep(total, norm, targets, *given, mean, limits, layers, clock)


def _judge(
    total: Tensor, micro_batches: int, limit: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The step's loss over all ranks, and one, or nan where it must not be trained on. Queued,
    as everything here: a wait for the ranks' forward passes, not for the host."""
    mean = total.clone()
    dist.all_reduce(mean)
    mean /= micro_batches * dist.get_world_size()
    good = mean.isfinite() & (mean <= limit)
    return mean, torch.where(good, 1.0, math.nan).to(dtype)


def read_steps(engine: DeepSpeedEngine, queued: list[QueuedStep]) -> list[StepResult]:
    """What the steps came to, in one transfer; collective, and waits for the device.

    `queued` are all steps since the last reading, in order.

    Raises:
        NonFiniteError: without a `Stability`; on every rank, with the weights as they were before
            the bad step.
    """
    if not queued:
        return []
    mine = torch.stack([_numbers(step) for step in queued])
    seconds = [step.clock.seconds() if step.clock else 0.0 for step in queued]
    mine = torch.cat([mine, torch.tensor(seconds).to(mine).unsqueeze(1)], dim=1)
    by_rank = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, mine)
    numbers = torch.stack(by_rank, dim=1).tolist()  # by step, by rank
    results = []
    for step, ranks in zip(queued, numbers, strict=True):
        losses, times = [rank[0] for rank in ranks], tuple(rank[-1] for rank in ranks)
        _, norm, targets, *judged, _ = ranks[0]
        mean = sum(losses) / (len(losses) * len(step.micro_batches))
        overflow = step.skipped and engine.fp16_enabled() and math.isfinite(mean)
        if step.limits is not None:
            why, finite = _words(losses, norm, *judged)
            if overflow and not finite:
                why = None
            skipped = overflow and not why
            results.append(StepResult(mean, norm, int(targets), skipped, why, finite, times))
            continue
        for rank, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise NonFiniteError(step.step, f"the loss on rank {rank} is {loss}")
        if not overflow:
            _check_gradient(engine, step, norm)
        results.append(StepResult(mean, norm, int(targets), step.skipped, seconds=times))
    return results


def _numbers(step: QueuedStep) -> Tensor:
    """[3 or 8] float64: all that a step left on the device."""
    numbers = [step.loss, step.grad_norm.double(), step.targets.double()]
    if step.limits is not None:
        numbers += [step.mean, *step.limits]
    else:
        numbers += [torch.zeros_like(step.loss)] * (1 + len(Limits._fields))
    return torch.stack(numbers)


def _words(
    losses: list[float],
    norm: float,
    mean: float,
    loss_limit: float,
    loss_median: float,
    norm_limit: float,
    norm_median: float,
) -> tuple[str | None, bool]:
    """Why a step was refused, None where it was not, and whether it was finite. The comparisons are
    the device's own, of the same numbers."""
    for rank, loss in enumerate(losses):
        if not math.isfinite(loss):
            return f"the loss on rank {rank} is {loss}", False
    if not mean <= loss_limit:
        usual = f"(median {loss_median:.4g})"
        return f"the loss {mean:.4g} is above {loss_limit:.4g} {usual}", True
    if not math.isfinite(norm):
        return "the loss is finite and the gradient is not", False
    if norm > norm_limit:
        usual = f"(median {norm_median:.4g})"
        return f"the gradient's norm {norm:.4g} is above {norm_limit:.4g} {usual}", True
    return None, True


def _num_items(targets: Tensor, micro_batches: int) -> Tensor:
    """What the module divides by. DeepSpeed averages over micro-batches and ranks; dividing the
    global count by their number turns that average into (sum of all token losses) / (all
    targets). A batch without any target has a loss of zero."""
    return targets.clamp(min=1).float() / (micro_batches * dist.get_world_size())


def _check_gradient(engine: DeepSpeedEngine, queued: QueuedStep, norm: float) -> None:
    if math.isfinite(norm) and not queued.skipped:
        return
    seed_step(queued.seed, queued.step)
    where = find_bad_gradients(engine, queued.micro_batches, queued.num_items)
    raise NonFiniteError(queued.step, f"the loss is finite and the gradient is not{where}")


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
