"""Several linear layers of one input as one weight, while every file and every state dict has the
public, separate ones.

One product instead of several, and one parameter where DeepSpeed's hooks cost time for each. The
rows of the fused weight are those of the separate weights one after the other, in the order in
which a separate module has them: flattened, both are the same numbers in the same order. Not here:
which layers.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retnet.models.layers import Linear


class FusedLinear(Linear):
    """Linear layers of one input, [..., in_features] -> [..., all rows]."""

    def __init__(self, in_features: int, parts: dict[str, int], bias: bool) -> None:
        """parts: the public name of each layer, a sibling of this one, and its rows, in order."""
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = parts

    def rows(self, weight: Tensor) -> dict[str, Tensor]:
        """Views of each part's rows of `weight` or bias [all rows, ...]."""
        return dict(zip(self.parts, weight.split(tuple(self.parts.values())), strict=True))

    def _save_to_state_dict(
        self, destination: dict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        """torch's, under the names of the parts, which are views; a weight that ZeRO-3 has split
        and emptied stays whole, under its own name."""
        parent = "".join(prefix[:-1].rpartition(".")[:2])
        for name, parameter in self.named_parameters():
            value = parameter if keep_vars else parameter.detach()
            if value.numel() == 0:
                destination[prefix + name] = value
                continue
            for part, rows in self.rows(value).items():
                destination[f"{parent}{part}.{name}"] = rows


class FusibleProjections(nn.Module):
    """A module that begins with linear layers of one input: separate ones, or one of all rows.

    State dicts that it loads may have either layout's names.
    """

    fused_name: ClassVar[str]
    "What the layer of all rows is called."

    def __init__(self, in_features: int, parts: dict[str, int], bias: bool, fused: bool) -> None:
        """parts: the public name and the rows of each layer, in order."""
        super().__init__()
        self.parts = parts
        self.fused = fused
        if fused:
            self.add_module(self.fused_name, FusedLinear(in_features, parts, bias))
            return
        for name, rows in parts.items():
            self.add_module(name, Linear(in_features, rows, bias=bias))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., in_features] -> each part's [..., rows]; views of one tensor where fused."""
        if self.fused:
            return getattr(self, self.fused_name)(x).split(tuple(self.parts.values()), dim=-1)
        return tuple(getattr(self, name)(x) for name in self.parts)

    def named_projections(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Each part's public name, weight [rows, in_features] and bias [rows] or None; views where
        fused."""
        if not self.fused:
            layers = ((name, getattr(self, name)) for name in self.parts)
            yield from ((name, layer.weight, layer.bias) for name, layer in layers)
            return
        layer = getattr(self, self.fused_name)
        biases = dict.fromkeys(self.parts) if layer.bias is None else layer.rows(layer.bias)
        for name, weight in layer.rows(layer.weight).items():
            yield name, weight, biases[name]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """torch's, after the names of the other layout have become this one's."""
        errors = rest[-1]
        for kind in ("weight", "bias"):
            whole = f"{prefix}{self.fused_name}.{kind}"
            separate = {f"{prefix}{part}.{kind}": rows for part, rows in self.parts.items()}
            if not self.fused and whole in state_dict:
                value = state_dict.pop(whole)
                if len(value) != sum(separate.values()):
                    errors.append(
                        f"{whole} has {len(value)} rows; needed {sum(separate.values())}, of "
                        f"{', '.join(f'{n} {name}' for name, n in self.parts.items())}"
                    )
                    continue
                values = value.split(tuple(separate.values()))
                state_dict.update(zip(separate, values, strict=True))
            elif self.fused and separate.keys() <= state_dict.keys():
                values = [state_dict.pop(name) for name in separate]
                for (name, rows), value in zip(separate.items(), values, strict=True):
                    width = getattr(self, self.fused_name).in_features
                    shape = [rows, width] if kind == "weight" else [rows]
                    if list(value.shape) != shape:
                        errors.append(f"{name} has shape {list(value.shape)}; needed {shape}")
                        break
                else:
                    state_dict[whole] = torch.cat(values)
        super()._load_from_state_dict(state_dict, prefix, *rest)
