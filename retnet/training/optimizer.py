"""AdamW over two groups of parameters: matrices, which decay, and everything else, which does not.

It decides the groups and the numbers. Who holds the float32 weights, shares them out among ranks
and clips the gradient is the engine's business.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn


class Update(Enum):
    """Who clips and updates the weights. Lower case, because that is how YAML says it."""

    fused = "fused"
    stock = "stock"


@dataclass
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and the clipping of its gradient."""

    learning_rate: float = 1e-3
    """Peak rate; the schedule scales it."""
    beta1: float = 0.9
    """Decay of the running mean of the gradient, per step."""
    beta2: float = 0.95
    """Decay of the running mean of its square, per step."""
    eps: float = 1e-8
    """Added to the root of the mean square, in units of the gradient."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, per unit of learning rate; norms, biases and embeddings
    do not decay."""
    gradient_clipping: float = 1.0
    """Largest L2 norm of the whole gradient; a longer one is scaled down to it. 0: off."""
    update: Update = Update.fused
    """fused: clipping, AdamW and cast in few passes over memory, without a wait for the device;
    stock: DeepSpeed's own step, same weights, taken anyway with float16, offload or stage 3."""

    def __post_init__(self) -> None:
        if self.learning_rate < 0.0:
            raise ValueError(f"optimizer.learning_rate is {self.learning_rate}; it cannot be < 0.")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"optimizer.{name} is {value}; it must be in [0, 1).")
        if self.eps <= 0.0:
            raise ValueError(f"optimizer.eps is {self.eps}; it must be above 0.")
        for name in ("weight_decay", "gradient_clipping"):
            value = getattr(self, name)
            if value < 0.0:
                raise ValueError(f"optimizer.{name} is {value}; it must be at least 0.")


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups for the optimizer, `decay` and `no_decay`, with the parameters' names.

    A parameter decays if it has two dimensions or more and no `nn.Embedding` owns it: a head tied
    to an embedding does not decay either, and a tied weight is listed once, under its first name.
    Parameters without a gradient are left out. Order is the module's, so it is the same on every
    rank. An empty group is left out.
    """
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, nn.Embedding)}
    groups = [
        {"name": "decay", "weight_decay": config.weight_decay, "params": [], "param_names": []},
        {"name": "no_decay", "weight_decay": 0.0, "params": [], "param_names": []},
    ]
    for name, parameter in module.named_parameters():  # lists a tied weight once
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)  # of a weight that ZeRO-3 has split
        group = groups[len(shape) < 2 or id(parameter) in embeddings]
        group["params"].append(parameter)
        group["param_names"].append(name)
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, *, fused: bool = True
) -> torch.optim.AdamW:
    """torch's own AdamW, in one fused kernel on CPU and GPU, over `parameter_groups`.

    The same class serves every ZeRO stage and the offloaded one (it works on whatever float32
    pieces the engine puts into its groups), so the stages take the same step.
    """
    groups = parameter_groups(module, config)
    for group in groups:
        # torch insists on names for all groups or none, and DeepSpeed swaps the parameters for
        # flat pieces without swapping the names; they stay in our own groups only.
        del group["param_names"]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )
