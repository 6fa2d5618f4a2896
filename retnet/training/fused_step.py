"""The optimizer step with as few passes over memory as torch's kernels allow: norm, clipping,
finite check, AdamW and the cast to the module's dtype, queued without a wait for the device. It
works on the pieces it is given; whose they are, `zero_step.py` and `replicated.py` know.

Bytes a parameter of a bfloat16 module with float32 gradient sums: the norm reads 4; AdamW reads
gradient, master and two moments (16), writes the masters and moments (12) and the gradient it has
scaled (4); the cast writes 2, and where a piece stays in cache reads nothing: 38. On a GPU, where
the pieces are whole tensors, the cast reads 4 more. The floor is 34: no kernel of torch clips
without writing the gradient. DeepSpeed's own step, with the same sums: at stage 2 the norm by a
double-precision copy 20, clipping 8, AdamW 28, cast 6, in all 62; at stage 1 the norm 4, clipping
8, AdamW 28, cast 6, zeros over the sums twice 8, in all 54. A kernel of our own (`operator`) does
not write the gradient: 34.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

CPU_PIECE = 2**19
"""Elements updated at a time on a CPU. Measured on 25 million, one thread, 32 MiB of third-level
cache: 2^17 to 2^20 and whole tensors are within 2 % of each other, 2^16 is 10 % slower."""


class Part(NamedTuple):
    """A master weight and what its step needs. All are contiguous and have n elements in all."""

    master: Tensor
    """Float32: the tensor that the optimizer knows."""
    gradients: list[Tensor]
    """Float32, one after the other over the master's elements; they may end before it does, where
    it ends in padding. Used up by the step."""
    weight: Tensor | None
    """The module's copy, in its dtype; None where the master is the module's own."""


class _Piece(NamedTuple):
    """What one call of the kernel takes, flat and of equal length, but for the counter."""

    master: Tensor
    gradient: Tensor
    mean: Tensor
    mean_square: Tensor
    counter: Tensor
    weight: Tensor | None


class FusedStep:
    """Clips and steps a `torch.optim.AdamW`, or leaves everything as it is where the norm of the
    gradient is not finite or above a limit. Without a limit also in all later steps, since the host
    has not looked.

    State lies in the optimizer where torch's own step puts it, so that a checkpoint does not tell
    which of the two took the steps. The numbers are torch's and DeepSpeed's but for the last bit
    of a clipped gradient: the norm is summed in another order.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        *,
        gradient_clipping: float,
        shared_out: bool,
        operator: Callable | None = None,
    ) -> None:
        """`gradient_clipping`: the largest norm, 0 is off. `shared_out`: every rank has its own
        parts of the gradient, and the norm is summed over the ranks. `operator`: a kernel that
        clips, updates and casts flat tensors in one pass (`retnet/kernels/triton/adamw.py`); None
        takes torch's."""
        self._optimizer = optimizer
        self._operator = operator
        self._max_norm = gradient_clipping or float("inf")
        self._shared_out = shared_out
        self._refused: Tensor | None = None  # 1.0 where no step is to be taken

    @torch.no_grad()
    def __call__(self, groups: list[list[Part]], limit: Tensor | None = None) -> Tensor:
        """Takes the step of the parts, listed by the optimizer's groups, and returns the norm
        before clipping, a float32 scalar on the device. `limit`: the largest norm that is no
        mistake, a float64 scalar there. Collective where parts are shared out."""
        norm = self._norm([gradient for parts in groups for part in parts for gradient in part[1]])
        refused = (~norm.isfinite()).float()
        if limit is not None:
            self._refused = refused.maximum((norm.double() > limit).float())
        else:
            # Kept for later steps: they would move weights that the report says have not moved.
            self._refused = refused if self._refused is None else self._refused.maximum(refused)
        scale = ((norm + 1e-6) / self._max_norm).clamp(min=1.0)  # as DeepSpeed divides
        for settings, parts in zip(self._optimizer.param_groups, groups, strict=True):
            self._update(settings, parts, scale)
        return norm

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        # In pieces also because a float32 sum over a long tensor loses digits.
        pieces = [piece for gradient in gradients for piece in _split(gradient)]
        squares = torch.stack(torch._foreach_norm(pieces)).double().square().sum()
        if self._shared_out:
            dist.all_reduce(squares)
        return squares.sqrt().float()

    def _update(self, settings: dict[str, Any], parts: list[Part], scale: Tensor) -> None:
        beta1, beta2 = settings["betas"]
        states = [adam_state(self._optimizer, part.master) for part in parts]
        # By a list, since by one scalar tensor torch adds what it first reads on the host.
        advance = [1.0 - self._refused] * len(states)
        torch._foreach_add_([state["step"] for state in states], advance)
        if self._operator is not None:
            coefficient = scale.reciprocal()
            for piece in _pieces(parts, states):
                self._operator(
                    piece.master,
                    piece.gradient,
                    piece.mean,
                    piece.mean_square,
                    piece.weight,
                    piece.counter,
                    settings["lr"],
                    beta1,
                    beta2,
                    settings["eps"],
                    settings["weight_decay"],
                    coefficient,
                    self._refused,
                )
            return
        for batch in _batches(parts, states):
            masters, gradients, means, mean_squares, counters, weights = zip(*batch, strict=True)
            torch._fused_adamw_(
                masters,
                gradients,
                means,
                mean_squares,
                [],
                counters,
                lr=settings["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=settings["weight_decay"],
                eps=settings["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=self._refused,
            )
            if weights[0] is not None:
                torch._foreach_copy_(weights, masters)


def adam_state(optimizer: torch.optim.AdamW, master: Tensor) -> dict[str, Tensor]:
    """The master's counter and moments, made where there are none, as torch's fused AdamW makes
    them at its first step."""
    state = optimizer.state[master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        state["exp_avg"] = torch.zeros_like(master, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(master, memory_format=torch.preserve_format)
    return state


def _split(tensor: Tensor) -> tuple[Tensor, ...]:
    """[n] into the pieces that are updated at a time: all of it on a GPU."""
    flat = tensor.view(-1)
    return flat.split(CPU_PIECE) if tensor.device.type == "cpu" else (flat,)


def _batches(parts: list[Part], states: list[dict[str, Tensor]]) -> Iterator[list[_Piece]]:
    """The pieces of all parts, as many at once as one call should take: a vector of a few hundred
    elements is not worth its own."""
    batch: list[_Piece] = []
    size = 0
    for piece in _pieces(parts, states):
        full = piece.master.device.type == "cpu" and size + piece.master.numel() > CPU_PIECE
        # A step of both kinds, module's own and copies, would need two lists.
        if batch and (full or (piece.weight is None) != (batch[0].weight is None)):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.master.numel()
    if batch:
        yield batch


def _pieces(parts: list[Part], states: list[dict[str, Tensor]]) -> Iterator[_Piece]:
    for part, state in zip(parts, states, strict=True):
        flat = [part.master.view(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)]
        weight = None if part.weight is None else part.weight.view(-1)
        start = 0
        for gradient in part.gradients:
            for piece in _split(gradient):
                place = slice(start, start + piece.numel())
                start = place.stop
                master, mean, mean_square = (tensor[place] for tensor in flat)
                lower = None if weight is None else weight[place]
                yield _Piece(master, piece, mean, mean_square, state["step"], lower)
