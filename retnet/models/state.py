"""The state of a retentive decoder as a value: what goes into every form and comes out of every
form.

Per layer S [B, H, K, V] in float32, and for all layers together the number of tokens [B] that the
running document has; nothing else. `RetentionCache` is also what transformers' `generate` carries
between steps.
"""

import torch
from torch import Tensor
from torch.utils._pytree import SequenceKey, register_pytree_node
from transformers.cache_utils import Cache

from retnet.models.configuration import RetentionConfig


class RetentionCache(Cache):
    """`past_key_values` of RetNet and NucleusX. Forward passes never change one, they return a new
    one; but where it is `in_place`, they write the new one over it and return it."""

    def __init__(
        self,
        states: list[Tensor],
        position: Tensor,
        length: int | Tensor,
        in_place: bool = False,
    ) -> None:
        """states: S [B, H, K, V] per layer; position [B]: tokens of the running document; length:
        tokens fed so far, masked ones included, which is how transformers counts."""
        super().__init__(layers=[])
        self.states = states
        self.position = position
        self.length = length
        self.in_place = in_place

    def __len__(self) -> int:
        return len(self.states)

    @staticmethod
    def empty(
        config: RetentionConfig,
        batch: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "RetentionCache":
        """The past of `batch` sequences that have not begun; dtype: float64 for such a model."""
        shape = (batch, config.num_heads, config.key_dim, config.value_dim // config.num_heads)
        states = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        return RetentionCache(states, torch.zeros(batch, dtype=torch.long, device=device), 0)

    def fixed(self) -> "RetentionCache":
        """A copy whose memory stays where it is: forward passes, without gradients, write the new
        state over the old one. Nothing then changes from one recurrent step to the next, so that it
        is compiled once and can be replayed as a CUDA graph; what a replay cannot count is counted
        on the device, the length too, a tensor []."""
        length = torch.zeros((), dtype=torch.long, device=self.position.device) + self.length
        copies = [x.clone(memory_format=torch.contiguous_format) for x in self._tensors()]
        for x in (*copies, length):
            torch._dynamo.mark_static_address(x)
        return RetentionCache(copies[:-1], copies[-1], length, in_place=True)

    def _tensors(self) -> list[Tensor]:
        return [*self.states, self.position]

    def overwrite(self, new: list[Tensor]) -> None:
        """Writes the states and the position `new` over ours, where they are not ours already.
        Raises ValueError where they are those of another batch or require a gradient."""
        for x, value in zip(self._tensors(), new, strict=True):
            if value.shape != x.shape:
                raise ValueError(
                    f"a fixed state of {len(x)} sequences was to become one of {len(value)}; "
                    "choose or repeat the sequences first, then call fixed()"
                )
            if value.requires_grad:
                raise ValueError(
                    "a fixed state was to be overwritten by one that requires a gradient; call the "
                    "model under torch.no_grad(), or with a past that is not fixed"
                )
            if value is not x:
                x.copy_(value)

    def _replace(self, new: list[Tensor]) -> None:
        if self.in_place:
            self.overwrite(new)
        else:
            *self.states, self.position = new

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        """Tokens fed so far, masked ones included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: a state has no maximum length."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """Whether transformers' `generate` compiles its steps, on GPUs: not where each forward pass
        makes new tensors."""
        return self.in_place

    @property
    def is_croppable(self) -> bool:
        """False: a sum over tokens does not give its last ones back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError."""
        raise ValueError(
            f"{tokens_to_remove} tokens were to be taken back, and a recurrent state cannot be "
            "cropped; keep the state from before them, or generate without an assistant"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i of the batch what row beam_idx[i] was (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices` of the batch."""
        self._replace([x.index_select(0, indices.to(x.device)) for x in self._tensors()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch `repeats` times."""
        self._replace([x.repeat_interleave(repeats, dim=0) for x in self._tensors()])

    def reset(self) -> None:
        """Back to an empty past."""
        self._replace([torch.zeros_like(x) for x in self._tensors()])
        self.length = self.length.zero_() if self.in_place else 0


def advance(
    past: RetentionCache | None, states: list[Tensor], position: Tensor, tokens: int
) -> RetentionCache:
    """What a forward pass over `tokens` tokens after `past` hands back: a new cache of the new
    states and position, or `past` itself with them in it, where it is `in_place`."""
    if past is None or not past.in_place:
        return RetentionCache(states, position, tokens + (0 if past is None else past.length))
    past.overwrite([*states, position])
    past.length.add_(tokens)
    return past


def _values(cache: RetentionCache) -> list[Tensor | int]:
    return [*cache.states, cache.position, cache.length]


# `torch.export` takes and returns what it can take apart and put together again.
register_pytree_node(
    RetentionCache,
    lambda cache: (_values(cache), cache.in_place),
    lambda values, in_place: RetentionCache(list(values[:-2]), *values[-2:], in_place),
    flatten_with_keys_fn=lambda cache: (
        [(SequenceKey(index), value) for index, value in enumerate(_values(cache))],
        cache.in_place,
    ),
    serialized_type_name=f"{__name__}.RetentionCache",
)
