"""The groups that weights are told under, and what comes out of the layers of our models; that the
gradients add up in every layout, test_restore.py shows on real engines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import retnet
from retnet.training.layer_norms import activation_squares, group_of

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_layers": 3, "num_heads": 2}
MODELS = {
    "retnet": lambda: retnet.RetNetForCausalLM(retnet.RetNetConfig(**SIZES, dropout=0.1)),
    "nucleus_x": lambda: retnet.NucleusXForCausalLM(retnet.NucleusXConfig(**SIZES)),
}


class Alone:
    """As much of an engine as is asked: the module, called as it is."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.device = module.train(), torch.device("cpu")
        self.eval, self.train = module.eval, module.train

    def __call__(self, **batch: Any) -> Any:
        return self.module(**batch)


@pytest.mark.parametrize("kind", MODELS)
def test_every_weight_of_a_model_has_its_group(kind: str) -> None:
    groups = {name: group_of(name) for name, _ in MODELS[kind]().named_parameters()}
    expected = {"embedding", "layer.00", "layer.01", "layer.02", "norm", "head"}
    assert set(groups.values()) == expected
    assert groups["lm_head.weight"] == "head" and groups["model.embed_tokens.weight"] == "embedding"
    assert groups["model.layers.2.retention.q_proj.weight"] == "layer.02"


def test_a_weight_that_says_nothing_of_its_place_is_among_the_others() -> None:
    assert group_of("bias") == "other"


@pytest.mark.parametrize("kind", MODELS)
def test_what_comes_out_of_each_layer_is_the_models_hidden_state(kind: str) -> None:
    """Of the first row, without dropout; and neither mode nor random numbers are touched."""
    torch.manual_seed(3)
    model = MODELS[kind]()
    rows = torch.randint(64, (2, 10))
    batch = {"input_ids": rows, "shift_labels": rows.clone()}
    before = torch.get_rng_state()
    found = activation_squares(Alone(model), batch)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    with torch.no_grad():
        hidden = model.eval()(rows[:1], output_hidden_states=True).hidden_states
    expected = [state.float().square().mean().item() for state in hidden]
    groups = ["embedding", "layer.00", "layer.01", "layer.02"]
    assert list(found) == groups
    values = [found[group].item() for group in groups]
    assert values[:3] == pytest.approx(expected[:3], rel=1e-6)  # the last one is normed there
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_without_layers_has_nothing_to_say() -> None:
    plain = SimpleNamespace(module=nn.Linear(2, 2), device=torch.device("cpu"))

    assert activation_squares(plain, {}) == {}
