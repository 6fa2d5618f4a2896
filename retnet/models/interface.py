"""What every forward pass takes and returns beside its own arguments: the older published names of
arguments, `return_dict`, and outputs with retention scores."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from retnet.models.state import RetentionCache

OLDER_NAMES = {
    "forward_impl": "forward_mode",
    "retention_mask": "attention_mask",
    "output_retentions": "output_attentions",
}


def published_interface(forward: Callable) -> Callable:
    """Lets `forward` of a model take `OLDER_NAMES` too, by keyword, and answers as its argument
    `return_dict` asks (None: the config's; False: a tuple without what is None)."""
    own = inspect.signature(forward)
    place = list(own.parameters).index("return_dict")
    # transformers' Trainer evaluates a loss only where a batch has every parameter that says
    # "label", so the signature shows one.
    parameters = [
        parameter
        for name, parameter in own.parameters.items()
        if "label" not in name or name == "labels"
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in OLDER_NAMES
    ]

    @wraps(forward)
    def with_published_names(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **current_names(kwargs))
        asked = args[place - 1] if len(args) >= place else kwargs.get("return_dict")
        in_dict = self.config.return_dict if asked is None else asked
        return outputs if in_dict else outputs.to_tuple()

    with_published_names.__signature__ = own.replace(parameters=parameters)
    return with_published_names


def current_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments under their current names. Raises ValueError where both names of one are
    given and say different things."""
    current = {name: value for name, value in arguments.items() if name not in OLDER_NAMES}
    for older, name in OLDER_NAMES.items():
        value, given = arguments.get(older), current.get(name)
        if value is None:
            continue
        if isinstance(value, Tensor) and isinstance(given, Tensor):
            agree = value is given or torch.equal(value, given)
        else:
            agree = given is None or value == given
        if not agree:
            raise ValueError(f"{older} is an older name of {name}; pass {name} alone")
        current[name] = value
    return current


class _OneTuple:
    """`retentions` and `attentions` are two names of one thing; a tuple holds it once."""

    def to_tuple(self) -> tuple:
        return tuple(value for name, value in self.items() if name != "attentions")


@dataclass
class RetentionOutputWithPast(_OneTuple, ModelOutput):
    """last_hidden_state [B, T, D]; past_key_values: the state; hidden_states: L + 1 times
    [B, T, D], the last one after the final norm; retentions, attentions: L times [B, H, T, T], the
    scores gamma^(n-m) <q_n, k_m> K^-1/2 Z_n^-1/2 before the values."""

    last_hidden_state: Tensor | None = None
    past_key_values: RetentionCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    retentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def rest(self) -> dict[str, Any]:
        """What a head hands on: all but last_hidden_state."""
        return {name: value for name, value in self.items() if name != "last_hidden_state"}


@dataclass
class RetentionCausalLMOutputWithPast(_OneTuple, ModelOutput):
    """loss []; logits [B, T, vocabulary]; the rest as in `RetentionOutputWithPast`."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: RetentionCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    retentions: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RetentionClassifierOutputWithPast(RetentionCausalLMOutputWithPast):
    """loss []; logits [B, labels]; the rest as in `RetentionOutputWithPast`."""
