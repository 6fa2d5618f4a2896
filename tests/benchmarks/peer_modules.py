"""Other RetNets' modules behind the interfaces that the benchmarks call: a layer, a model from ids
to logits, a recurrent decoder and retention alone.

Not here: where they come from, and how they are built (`peers.py`).
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Past = tuple[int, Any]
"Tokens seen, and a peer's own states after them."


def cast(tensors: Any, dtype: torch.dtype) -> Any:
    """A tree with its tensors in `dtype`."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) else x, tensors)


class CastPositions(nn.Module):
    """A peer's module of positions, giving what it computes in the dtype of `weight`."""

    def __init__(self, inner: nn.Module, weight: nn.Parameter) -> None:
        super().__init__()
        # In tuples: a weight of another module, and buffers that stay float32 whatever is cast.
        self.inner, self.owner = (inner,), (weight,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return cast(self.inner[0](*args, **kwargs), self.owner[0].dtype)


class Calling(nn.Module):
    """A model behind one function of it: ids -> logits."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, ids: Tensor) -> Tensor:
        return self.call(self.inner, ids)


class TorchScaleLayer(nn.Module):
    """torchscale's layer in one form: x [1, T, D] -> same. Positions are made at the first call."""

    def __init__(self, retention: nn.Module, positions: nn.Module, chunkwise: bool) -> None:
        super().__init__()
        self.retention = retention
        self.positions = (positions,)  # in a tuple: its buffers stay float32
        self.chunkwise = chunkwise
        self.made: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            made = self.positions[0](x.shape[1], chunkwise_recurrent=self.chunkwise)
            self.made = cast(made, x.dtype)
        return self.retention(x, self.made, chunkwise_recurrent=self.chunkwise)


class Recurrent(nn.Module):
    """A peer's model called as transformers' are: recurrent with `use_cache`, else parallel."""

    def __init__(
        self,
        parallel: Calling,
        step: Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]],
        start: Callable[[], Any],
    ) -> None:
        """step: model, ids [B, n] and states -> logits [B, 1, vocabulary] and states; of the ids
        only the number and the last column count. start: states before the first token."""
        super().__init__()
        self.parallel = parallel
        self.step = step
        self.start = start

    def forward(
        self, input_ids: Tensor, past_key_values: Past | None = None, use_cache: bool = True
    ) -> SimpleNamespace:
        """ids [B, T] -> logits [B, T, vocabulary], with a cache those of the last token alone."""
        if not use_cache:
            return SimpleNamespace(logits=self.parallel(input_ids))
        length, states = (0, self.start()) if past_key_values is None else past_key_values
        for token in input_ids.split(1, dim=1):  # [B, 1]
            length += 1
            whole = token.expand(-1, length)  # a view as wide as the text so far
            logits, states = self.step(self.parallel.inner, whole, states)
        return SimpleNamespace(logits=logits, past_key_values=(length, states))

    def filled(self, batch: int, context: int) -> Past:
        """The past of `context` tokens in shapes and positions: one token fills all of a state."""
        token = torch.zeros(batch, 1, dtype=torch.long)
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            _, states = self(token).past_key_values
        return context, states


def torchscale_step(model: nn.Module, ids: Tensor, states: dict) -> tuple[Tensor, dict]:
    """A token through torchscale's decoder, which changes the states it is given."""
    return model(ids, incremental_state=states)[0], states


def syncdoth_step(model: nn.Module, ids: Tensor, states: Any) -> tuple[Tensor, Any]:
    """A token through syncdoth's model."""
    asked = {"forward_impl": "recurrent", "use_cache": True, "return_dict": True}
    found = model(ids, past_key_values=states, **asked)
    return found.logits, found.past_key_values


def torchscale_operator(
    retention: nn.Module, positions: nn.Module, time: int, chunkwise: bool, dtype: torch.dtype
) -> Callable[..., Tensor]:
    """What torchscale's layer does between rotation and head norm: q, k [B, T, H, K], v
    [B, T, H, V] and log_decay, of which it has its own -> [B, T, H, V], or, chunkwise,
    [B, N, C, H, V]. Its masks are made here, before the clock starts."""
    _, mask = cast(positions(time, chunkwise_recurrent=chunkwise), dtype)
    form = retention.chunk_recurrent_forward if chunkwise else retention.parallel_forward

    def retain(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return form(q.transpose(1, 2), k.transpose(1, 2), v.flatten(2), mask)

    return retain
