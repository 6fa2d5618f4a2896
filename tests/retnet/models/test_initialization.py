"""Every tensor starts as the published table says, wherever and however the model is built."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import retnet
from retnet.kernels import KernelsConfig, select_kernels
from tests.retnet.training.processes import run

LAYERS, D, VALUE, FFN, VOCABULARY = 3, 128, 192, 160, 500
SIZES = dict(
    vocab_size=VOCABULARY,
    decoder_layers=LAYERS,
    decoder_embed_dim=D,
    decoder_retention_heads=2,
    decoder_value_embed_dim=VALUE,
    decoder_ffn_embed_dim=FFN,
)
PLAIN = dict(use_glu=False, subln=False)
VARIANTS = {
    "gated": ("RetNetForCausalLM", dict(use_glu=True)),
    "plain with sub-LN": ("RetNetForCausalLM", dict(use_glu=False, subln=True)),
    "plain": ("RetNetForCausalLM", PLAIN),
    "plain with RMS sub-LN": ("RetNetForCausalLM", dict(subln=True, use_ffn_rms_norm=True)),
    "plain with DeepNorm": ("RetNetForCausalLM", PLAIN | dict(deepnorm=True)),
    "gated with DeepNorm": ("RetNetForCausalLM", dict(use_glu=True, subln=False, deepnorm=True)),
    "tied": ("RetNetForCausalLM", dict(use_glu=True, tie_word_embeddings=True)),
    "with biases": ("RetNetForCausalLM", PLAIN | dict(retention_bias=True)),
    "with weighted head norm": ("RetNetForCausalLM", dict(use_glu=True, head_norm_affine=True)),
    "other numbers": (
        "RetNetForCausalLM",
        dict(
            use_glu=True,
            initializer_factor=0.3,
            initializer_range=0.05,
            lm_head_initializer_range=0.2,
        ),
    ),
    "classifier": ("RetNetForSequenceClassification", dict(use_glu=True, num_labels=40)),
    "nucleus x": ("NucleusXForCausalLM", dict()),
    "nucleus x with DeepNorm": ("NucleusXForCausalLM", dict(deepnorm=True)),
    "nucleus x tied": ("NucleusXForCausalLM", dict(tie_word_embeddings=True)),
    "nucleus x classifier": ("NucleusXForSequenceClassification", dict(num_labels=40)),
}
# "Other numbers" asks for a head that is far from a uniform guess
LANGUAGE_MODELS = [n for n in VARIANTS if "classifier" not in n and n != "other numbers"]
SPLIT = {
    "plain with sub-LN": ("float32", False),
    "with biases": ("float32", True),
    "with weighted head norm": ("bfloat16", True),
    "nucleus x tied": ("float32", True),
    "nucleus x classifier": ("bfloat16", False),
}
"Variants that differ in which module initializes what, a dtype, and whether projections are fused."


def make_config(name: str):
    class_name, changes = VARIANTS[name]
    return getattr(retnet, class_name).config_class(**SIZES | changes)


def build(name: str, seed: int = 0, fused: bool = False):
    kernels = select_kernels(KernelsConfig(fused_projections=fused))
    torch.manual_seed(seed)
    return getattr(retnet, VARIANTS[name][0])(make_config(name), kernels)


def expected(name: str, variant: str) -> tuple[str, float]:
    """The table, for tensor `name`: ("normal", std), ("uniform", bound) or ("constant", value)."""
    changes = VARIANTS[variant][1]
    branch = 1.0
    if changes.get("deepnorm"):
        branch = (8 * LAYERS) ** -0.25
    elif changes.get("subln"):
        branch = math.sqrt(math.log(2 * LAYERS))
    gain = changes.get("initializer_factor", 2**-2.5)
    feed_forward = changes.get("initializer_range", 0.02)
    head = changes.get("lm_head_initializer_range", D**-0.5 / 4)

    def xavier(gain: float, other: int) -> tuple[str, float]:
        return "uniform", gain * math.sqrt(6 / (D + other))

    layer, leaf = name.rsplit(".", 2)[-2:]
    if leaf == "bias":
        return "constant", 0.0
    if layer.endswith("norm") or "norm_" in layer:
        return "constant", 1.0
    return {
        "embed_tokens": ("normal", head if "tied" in variant else D**-0.5),
        "q_proj": xavier(gain, D),
        "k_proj": xavier(gain, D),
        "g_proj": xavier(gain, VALUE),
        "v_proj": xavier(gain * branch, VALUE),
        "out_proj": xavier(0.5 * branch, VALUE),
        "fc1": ("normal", feed_forward * branch),
        "fc2": ("normal", feed_forward * branch),
        "gate": ("normal", feed_forward),
        "lm_head": ("normal", head),
        "score": ("normal", feed_forward),
    }[layer]


def check(name: str, value: Tensor, kind: str, scale: float) -> None:
    value = value.double()
    if kind == "constant":
        assert (value == scale).all(), name
        return
    std = scale if kind == "normal" else scale / math.sqrt(3)
    assert abs(value.std().item() / std - 1) < 0.05, name
    assert abs(value.mean().item()) < 0.05 * std, name
    if kind == "uniform":
        assert 0.99 < (value.abs().max() / scale).item() < 1 + 1e-6, name
    else:
        assert (value.abs() > 2.5 * std).double().mean() > 0.005, name  # 0.012 of a normal one


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_starts_as_the_table_says_in_both_layouts(variant):
    weights, fused = build(variant).state_dict(), build(variant, fused=True).state_dict()
    assert fused.keys() == weights.keys()
    for name, value in weights.items():
        check(name, value, *expected(name, variant))
        assert torch.equal(fused[name], value), name


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_built_without_numbers_gets_the_same_ones_later(variant, fused):
    with torch.device("meta"):
        model = build(variant, fused=fused)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    torch.manual_seed(0)
    model.init_weights()
    weights = build(variant).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    if "tied" in variant:
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_split_among_ranks_while_it_is_built_gets_the_same_numbers(tmp_path: Path):
    models = {
        variant: (VARIANTS[variant][0], SIZES | VARIANTS[variant][1], dtype, fused)
        for variant, (dtype, fused) in SPLIT.items()
    }
    for rank in run("built_in_shards", 2, tmp_path, models=models):
        for variant, (dtype, _) in SPLIT.items():
            seen, plain = rank[variant], build(variant).state_dict()
            assert seen["held"] == 0, variant  # each parameter was split when its module was built
            assert seen["tied"] == ("tied" in variant)
            assert seen["weights"].keys() == plain.keys()
            for name, value in seen["weights"].items():
                assert value.dtype == getattr(torch, dtype)
                assert torch.equal(value, plain[name].to(value.dtype)), (variant, name)


def test_a_model_built_in_bfloat16_is_the_float32_one_rounded():
    torch.manual_seed(0)
    half = AutoModelForCausalLM.from_config(make_config("gated"), dtype=torch.bfloat16)
    for name, value in build("gated").state_dict().items():
        assert torch.equal(half.state_dict()[name], value.bfloat16()), name


def test_the_seed_decides_and_no_tensor_repeats_another():
    one, again, other = build("nucleus x"), build("nucleus x"), build("nucleus x", seed=1)
    drawn = {n: p for n, p in one.named_parameters() if expected(n, "nucleus x")[0] != "constant"}
    for name, parameter in drawn.items():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
    assert len({parameter.flatten()[0].item() for parameter in drawn.values()}) == len(drawn)


def test_what_was_loaded_is_left_alone_and_what_was_not_starts_as_the_table_says(tmp_path):
    model = build("nucleus x")
    model.save_pretrained(tmp_path)
    classifier = retnet.NucleusXForSequenceClassification.from_pretrained(tmp_path, num_labels=40)
    for name, value in model.model.state_dict().items():
        assert torch.equal(classifier.model.state_dict()[name], value), name
    check("score", classifier.score.weight, *expected("score.weight", "nucleus x classifier"))


@pytest.mark.parametrize("variant", LANGUAGE_MODELS)
def test_the_initial_loss_is_near_that_of_a_uniform_guess(variant):
    model, ids = build(variant), torch.randint(0, VOCABULARY, (4, 256))
    assert abs(model(ids, labels=ids).loss.item() - math.log(VOCABULARY)) < 0.1
