"""Who decays, and that no parameter is lost or listed twice."""

import pytest
import torch

from retnet.training.optimizer import OptimizerConfig, build_optimizer, parameter_groups
from tests.retnet.training.small_model import make_model


def test_matrices_decay_and_norms_biases_and_embeddings_do_not() -> None:
    decay, rest = parameter_groups(make_model(), OptimizerConfig(weight_decay=0.3))
    assert decay["param_names"] == ["layers.0.weight", "layers.1.weight"]
    assert rest["param_names"] == [
        "embedding.weight",  # and the head, which is tied to it
        "layers.0.bias",
        "layers.1.bias",
        "norms.0.weight",
        "norms.0.bias",
        "norms.1.weight",
        "norms.1.bias",
    ]
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)


def test_every_parameter_is_in_one_group_once() -> None:
    module = make_model()
    module.norms[0].bias.requires_grad_(False)
    groups = parameter_groups(module, OptimizerConfig())
    listed = [parameter for group in groups for parameter in group["params"]]
    expected = {id(value) for value in module.parameters() if value.requires_grad}
    assert len(listed) == len(expected) and {id(value) for value in listed} == expected
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert module.get_parameter(name) is parameter


def test_an_empty_group_is_left_out() -> None:
    groups = parameter_groups(torch.nn.LayerNorm(3), OptimizerConfig())
    assert [group["name"] for group in groups] == ["no_decay"]


def test_the_optimizer_takes_the_numbers_of_the_config() -> None:
    config = OptimizerConfig(learning_rate=0.5, beta1=0.7, beta2=0.8, eps=1e-3)
    for group in build_optimizer(make_model(), config).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.7, 0.8), 1e-3)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"learning_rate": -1.0}, "optimizer.learning_rate is -1.0"),
        ({"beta2": 1.0}, "optimizer.beta2 is 1.0"),
        ({"eps": 0.0}, "optimizer.eps is 0.0"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay is -0.1"),
        ({"gradient_clipping": -1.0}, "optimizer.gradient_clipping is -1.0"),
    ],
)
def test_an_impossible_optimizer_is_refused_by_its_key(values: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        OptimizerConfig(**values)
