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


class RetentionCache(Cache):
    """`past_key_values` of RetNet and NucleusX. Forward passes never change one; they return a new
    one."""

    def __init__(self, states: list[Tensor], position: Tensor, length: int) -> None:
        """states: S [B, H, K, V] per layer; position [B]: tokens of the running document; length:
        tokens fed so far, masked ones included, which is how transformers counts."""
        super().__init__(layers=[])
        self.states = states
        self.position = position
        self.length = length

    def __len__(self) -> int:
        return len(self.states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens fed so far, masked ones included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: a state has no maximum length."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """False: each forward pass makes new tensors."""
        return False

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
        self.states = [state.index_select(0, indices.to(state.device)) for state in self.states]
        self.position = self.position.index_select(0, indices.to(self.position.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch `repeats` times."""
        self.states = [state.repeat_interleave(repeats, dim=0) for state in self.states]
        self.position = self.position.repeat_interleave(repeats, dim=0)

    def reset(self) -> None:
        """Back to an empty past."""
        self.states = [torch.zeros_like(state) for state in self.states]
        self.position = torch.zeros_like(self.position)
        self.length = 0


def _values(cache: RetentionCache) -> list[Tensor | int]:
    return [*cache.states, cache.position, cache.length]


# `torch.export` takes and returns what it can take apart and put together again.
register_pytree_node(
    RetentionCache,
    lambda cache: (_values(cache), None),
    lambda values, _: RetentionCache(list(values[:-2]), *values[-2:]),
    flatten_with_keys_fn=lambda cache: (
        [(SequenceKey(index), value) for index, value in enumerate(_values(cache))],
        None,
    ),
    serialized_type_name=f"{__name__}.RetentionCache",
)
