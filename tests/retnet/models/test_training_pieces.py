"""What training adds to the model: dropout, stochastic depth, gradient checkpointing, tied weights,
and how embeddings and residuals are scaled."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.retnet.models.small_model import SIZES, VOCABULARY, build_model

D = SIZES["decoder_embed_dim"]
PLAIN, GATED = dict(use_glu=False, subln=False), dict(use_glu=True)
BATCH = 600


def tokens(batch: int = 2, time: int = 9) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(1))


def layer_of(model: nn.Module, index: int = 0) -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """A layer of `model`, a call of it on what it sees in an evaluation pass, and that input."""
    layer, seen = model.model.layers[index], []
    with layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments)):
        with torch.no_grad():
            model.eval()(tokens(BATCH, 3))
    return layer, lambda: layer(*seen[0])[0], seen[0][0]


def silence(layer: nn.Module, branch: str) -> None:
    """Makes one of a layer's two residual branches zero."""
    last = layer.retention.out_proj if branch == "retention" else layer.ffn.fc2
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def check_dropped(dropped: Tensor, whole: Tensor, rate: float) -> None:
    """A share `rate` of the elements of `whole` is zero, the others are scaled up."""
    zero = (dropped == 0) & (whole != 0)
    assert abs(zero.double().mean() - rate) < 0.02
    torch.testing.assert_close(dropped[~zero], whole[~zero] / (1 - rate))


def test_dropout_falls_on_the_embedding(architecture):
    model, ids = build_model(architecture, dropout=0.3), tokens(BATCH)

    def embedding() -> Tensor:
        return model(ids, output_hidden_states=True).hidden_states[0]

    whole = embedding()
    check_dropped(model.train() and embedding(), whole, 0.3)


@pytest.mark.parametrize("silent", ["retention", "feed-forward"])
@torch.no_grad()
def test_dropout_falls_on_each_branch(architecture, silent):
    layer, call, x = layer_of(build_model(architecture, dropout=0.3).double())
    silence(layer, silent)
    whole = call() - x
    layer.train()
    # x + 0 - x rounds to 0 exactly
    check_dropped(call() - x, whole, 0.3)


@pytest.mark.parametrize("fields", [PLAIN, GATED], ids=["plain", "gated"])
@torch.no_grad()
def test_activation_dropout_falls_inside_the_feed_forward(fields):
    fields = fields | dict(decoder_ffn_embed_dim=D, activation_dropout=0.3)
    feed_forward = build_model("retnet", **fields).model.layers[0].ffn
    nn.init.eye_(feed_forward.fc2.weight)  # shows what is inside
    x = torch.randn(BATCH, 3, D)
    whole = feed_forward(x)
    check_dropped(feed_forward.train()(x), whole, 0.3)


@pytest.mark.parametrize("silent", ["retention", "feed-forward"])
@torch.no_grad()
def test_stochastic_depth_drops_branches_of_sequences_more_often_with_depth(architecture, silent):
    model = build_model(architecture, drop_path_rate=0.5, decoder_layers=3).double()
    for index, rate in enumerate((0.0, 0.25, 0.5)):
        layer, call, x = layer_of(model, index)
        silence(layer, silent)
        whole = call() - x
        layer.train()
        branch = call() - x
        dropped = (branch == 0).all(dim=(1, 2))
        assert abs(dropped.double().mean() - rate) < 0.08
        kept = ~dropped  # scaled up, so that the expectation stays
        torch.testing.assert_close(branch[kept], whole[kept] / (1 - rate))


def test_a_model_of_one_layer_drops_no_branch(architecture):
    model, ids = build_model(architecture, drop_path_rate=0.5, decoder_layers=1), tokens(BATCH)
    whole = model(ids).logits
    assert torch.equal(model.train()(ids).logits, whole)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient_and_no_random_number(
    architecture, reentrant, mode
):
    noise = dict(dropout=0.2, activation_dropout=0.2, drop_path_rate=0.3)
    model, ids = build_model(architecture, **noise).train(), tokens()
    calls = []
    model.model.layers[1].retention.register_forward_hook(lambda *_: calls.append(1))

    def train() -> tuple[Tensor, ...]:
        calls.clear()
        model.zero_grad()
        torch.manual_seed(5)
        loss = model(ids, labels=ids, forward_mode=mode).loss
        loss.backward()
        return loss.detach(), *(p.grad for p in model.parameters()), torch.get_rng_state()

    plain = train()
    assert len(calls) == 1
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for a, b in zip(train(), plain, strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 2  # it did compute the layer again
    model.activation_checkpointing_disable()
    train()
    assert len(calls) == 1


def test_a_tied_weight_is_one_parameter_whose_gradient_is_the_sum(architecture):
    untied = build_model(architecture).double()
    tied = build_model(architecture, tie_word_embeddings=True).double()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert len(list(tied.parameters())) == len(list(untied.parameters())) - 1
    with torch.no_grad():
        untied.lm_head.weight.copy_(untied.model.embed_tokens.weight)
    tied.load_state_dict(untied.state_dict())
    ids = tokens()
    for model in (tied, untied):
        model(ids, labels=ids).loss.backward()
    total = untied.model.embed_tokens.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(tied.lm_head.weight.grad, total)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rows", [VOCABULARY + 8, VOCABULARY - 8])
def test_resizing_the_vocabulary_keeps_the_tie_and_the_rows(architecture, tie, rows):
    model, ids = build_model(architecture, tie_word_embeddings=tie), tokens().clamp(max=rows - 1)
    kept = min(rows, VOCABULARY)
    before = model(ids).logits[..., :kept].detach()
    model.resize_token_embeddings(rows)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    assert model.config.vocab_size == rows
    logits = model(ids).logits
    assert logits.shape[-1] == rows
    torch.testing.assert_close(logits[..., :kept], before)
    ids[0, 0] = rows - 1
    model.train()(ids, labels=ids).loss.backward()
    assert (model.model.embed_tokens.weight.grad[rows - 1] != 0).any()


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize("scale", [False, True], ids=["no scale", "scale"])
def test_embeddings_are_scaled_then_normalized_also_where_they_are_given(architecture, norm, scale):
    name = {"retnet": "layernorm_embedding", "nucleus_x": "rms_norm_embedding"}[architecture]
    model = build_model(architecture, no_scale_embedding=not scale, **{name: norm}).double()
    ids = tokens()
    given = model.model.embed_tokens(ids)
    wanted = given * math.sqrt(D) if scale else given
    if norm:
        if architecture == "retnet":
            wanted = wanted - wanted.mean(-1, keepdim=True)
        wanted = wanted / (wanted.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for arguments in (dict(input_ids=ids), dict(inputs_embeds=given)):
        seen = model(**arguments, output_hidden_states=True).hidden_states[0]
        torch.testing.assert_close(seen, wanted)


def test_the_embedding_of_a_pad_token_that_ends_texts_too_trains(architecture):
    model, ids = build_model(architecture, pad_token_id=2, eos_token_id=2).train(), tokens()
    ids[:, 4] = 2
    row = model.model.embed_tokens.weight[2]
    assert (row != 0).all()
    model(ids, labels=ids).loss.backward()
    gradient = model.model.embed_tokens.weight.grad[2]
    assert (gradient != 0).any()
    before = row.detach().clone()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(model.model.embed_tokens.weight[2], before)


@torch.no_grad()
def test_deepnorm_normalizes_the_scaled_residual_and_the_branch(architecture):
    model = build_model(architecture, deepnorm=True, decoder_layers=8).double()
    seen = {}
    layer, call, x = layer_of(model, 3)
    for name in ("retention", "ffn"):
        layer.get_submodule(name).register_forward_hook(
            lambda _, arguments, output, name=name: seen.update({name: (arguments[0], output)})
        )
    y = call()

    def norm(v: Tensor) -> Tensor:
        if architecture == "retnet":
            v = v - v.mean(-1, keepdim=True)
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    alpha = 2.0  # (2 * 8)^(1/4)
    assert torch.equal(seen["retention"][0], x)
    middle = norm(alpha * x + seen["retention"][1][0])
    torch.testing.assert_close(seen["ffn"][0], middle)
    torch.testing.assert_close(y, norm(alpha * middle + seen["ffn"][1]))
