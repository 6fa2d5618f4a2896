"""Fused projections are the separate ones in another shape: same results, same files, same numbers
in the same order."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from retnet import NucleusXConfig, NucleusXForCausalLM, RetNetConfig, RetNetForCausalLM
from retnet.kernels import KernelsConfig, select_kernels
from retnet.models.build import count_parameters, flops_per_token
from retnet.models.export import export_model
from retnet.models.fused import FusedLinear
from retnet.training.optimizer import OptimizerConfig, parameter_groups
from tests.retnet.models.small_model import SIZES, VOCABULARY

KERNELS = {fused: select_kernels(KernelsConfig(fused_projections=fused)) for fused in (False, True)}
VARIANTS = {
    "gated": (RetNetConfig, RetNetForCausalLM, dict(use_glu=True)),
    "plain": (RetNetConfig, RetNetForCausalLM, dict(use_glu=False)),
    "biases": (RetNetConfig, RetNetForCausalLM, dict(retention_bias=True, use_glu=True)),
    "deepnorm": (RetNetConfig, RetNetForCausalLM, dict(use_glu=True, deepnorm=True)),
    "gelu": (RetNetConfig, RetNetForCausalLM, dict(use_glu=True, activation_fn="gelu")),
    "nucleus_x": (NucleusXConfig, NucleusXForCausalLM, dict()),
}


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


def build(variant: str, fused: bool, seed: int = 0):
    config_class, model_class, changes = VARIANTS[variant]
    torch.manual_seed(seed)
    return model_class(config_class(**SIZES | changes), KERNELS[fused])


def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(1))


def public(model: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values by parameters' names, under the public names."""
    found = dict(values)
    for name, module in model.named_modules():
        if isinstance(module, FusedLinear):
            for kind, _ in module.named_parameters():
                for part, rows in module.rows(found.pop(f"{name}.{kind}")).items():
                    found[f"{name.rpartition('.')[0]}.{part}.{kind}"] = rows
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_layer_has_one_parameter_for_its_projections_and_one_for_its_inner_weights():
    names = [name for name, _ in build("nucleus_x", True).model.layers[0].named_parameters()]
    assert names == [
        "retention.qkvg_proj.weight",
        "retention.out_proj.weight",
        "ffn.gate_up_proj.weight",
        "ffn.fc2.weight",
        "retention_rms_norm.weight",
        "final_rms_norm.weight",
    ]


@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_outputs_and_gradients_are_the_separate_ones(variant, mode):
    separate, fused = build(variant, False).double(), build(variant, True).double()
    found = []
    for model in (separate, fused):
        out = model(tokens(), labels=tokens(), forward_mode=mode)
        out.loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found.append(public(model, gradients) | {"logits": out.logits})
    expected, given = found
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert (given[name] - value).abs().max() <= 1e-12 * value.abs().max(), name


def test_the_parts_are_views_of_one_product():
    layer = build("gated", True).model.layers[0]
    for module in (layer.retention, layer.ffn):
        parts = module.project(torch.randn(2, 5, SIZES["decoder_embed_dim"]))
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        assert all(not part.is_contiguous() for part in parts)


def test_either_layout_loads_the_state_dict_and_the_parameters_of_either(variant):
    given = build(variant, False, seed=1)
    held = [given.state_dict()]
    joined = build(variant, True)
    joined.load_state_dict(held[0])
    held += [joined.state_dict(), dict(joined.named_parameters())]
    before = [list(weights) for weights in held]
    for weights in held:
        for fused in (False, True):
            for assign in (False, True):
                model = build(variant, fused)
                model.load_state_dict(weights, assign=assign)
                assert_equal(model.state_dict(), held[0])
    assert [list(weights) for weights in held] == before  # what was given is left alone


def test_a_layer_loads_by_itself_too():
    separate, fused = (build("biases", f, seed=f).model.layers[0].retention for f in (False, True))
    fused.load_state_dict(separate.state_dict())
    assert_equal(fused.state_dict(), separate.state_dict())


def test_weights_that_are_missing_or_of_another_shape_are_named():
    weights = build("gated", False).state_dict()
    name = "model.layers.1.retention.k_proj.weight"
    without = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(RuntimeError, match=r"Missing.*layers\.1\.retention\.qkvg_proj\.weight"):
        build("gated", True).load_state_dict(without)
    wide = SIZES["decoder_embed_dim"]
    with pytest.raises(RuntimeError, match=rf"k_proj\.weight has shape \[8, {wide}\]; needed"):
        build("gated", True).load_state_dict(weights | {name: weights[name][:8]})
    weights = dict(build("gated", True).named_parameters())
    name = "model.layers.0.ffn.gate_up_proj.weight"
    with pytest.raises(RuntimeError, match=r"gate_up_proj\.weight has 8 rows; needed 80"):
        build("gated", False).load_state_dict(weights | {name: weights[name][:8]})


def test_a_weight_that_a_rank_does_not_hold_stays_whole_under_its_own_name():
    """As under ZeRO-3, which leaves an empty tensor in a parameter's place."""
    layer = build("biases", True).model.layers[0].retention
    for parameter in layer.parameters():
        parameter.data = torch.empty(0)
    assert layer.state_dict().keys() == dict(layer.named_parameters()).keys()


def test_what_an_optimizer_flattens_is_the_same_in_both_layouts(variant):
    """Group by group the same numbers in the same order, in what ZeRO 1 and 2 split too."""
    flat = []
    for fused in (False, True):
        groups = parameter_groups(build(variant, fused), OptimizerConfig())
        flat.append({g["name"]: torch.cat([p.flatten() for p in g["params"]]) for g in groups})
    assert_equal(flat[1], flat[0])


def test_a_model_costs_the_same_in_both_layouts(variant):
    separate, fused = build(variant, False), build(variant, True)
    assert count_parameters(fused) == count_parameters(separate)
    assert flops_per_token(fused) == flops_per_token(separate)


def test_saved_files_hold_the_public_weights(variant, tmp_path):
    separate, fused = build(variant, False), build(variant, True)
    fused.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(dict(loaded.named_parameters()), dict(separate.named_parameters()))


def test_an_export_is_the_same_from_weights_named_either_way(variant, tmp_path):
    separate, fused = build(variant, False), build(variant, True)
    ways = {
        "separate": separate.state_dict(),
        "fused": fused.state_dict(),
        "by parameter": {name: weight.detach() for name, weight in fused.named_parameters()},
    }
    for name, weights in ways.items():
        export_model(fused.config, weights, tmp_path / name)
    files = {(tmp_path / name / "model.safetensors").read_bytes() for name in ways}
    assert len(files) == 1


def test_loading_files_into_a_fused_model_is_refused(tmp_path):
    build("gated", False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fused_projections=True, and files hold the separate"):
        RetNetForCausalLM.from_pretrained(tmp_path, kernels=KERNELS[True])
    RetNetForCausalLM.from_pretrained(tmp_path, kernels=KERNELS[False])
