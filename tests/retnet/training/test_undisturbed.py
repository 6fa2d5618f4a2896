"""Nothing is left behind by a look, whatever the look does and however it ends."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retnet.training.undisturbed import undisturbed


class Engine(nn.Module):
    """What of an engine the guard needs."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Dropout(0.5)


class Layer(nn.Module):
    """A layer of one's own: torch's are not compiled by themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1


def states() -> list[Any]:
    """All that draws numbers in a run."""
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


@pytest.mark.parametrize("training", [False, True])
def test_mode_and_random_numbers_are_what_they_were(training: bool) -> None:
    engine = Engine()
    engine.train(training)
    before = states()
    with pytest.raises(KeyError), undisturbed(engine):
        assert not engine.module.training and not torch.is_grad_enabled()
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(7)  # as lm-eval does
        raise KeyError
    assert states() == before and engine.module.training == training
    assert torch.is_grad_enabled()


def test_compiled_layers_see_other_shapes_without_being_compiled() -> None:
    engine, compiled = Engine(), []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(inputs)
        return graph

    layer = Layer()
    layer.compile(backend=count, dynamic=False)
    layer(torch.zeros(2, 3))
    seen = len(compiled)
    assert seen == 1
    with undisturbed(engine):
        layer(torch.zeros(5, 3))
    assert len(compiled) == seen
    with undisturbed(engine, stance="default"):
        layer(torch.zeros(7, 3))
    assert len(compiled) > seen
