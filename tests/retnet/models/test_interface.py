"""Every argument and output that the published documents name is there and means what it says."""

import dataclasses
import inspect

import pytest
import torch

import retnet
from retnet.kernels import select_kernels
from tests.retnet.models import small_model

SIZES = small_model.SIZES | dict(vocab_size=53)
HEADS = ("Model", "ForCausalLM", "ForSequenceClassification")
CLASSES = [f"{name}{head}" for name in ("RetNet", "NucleusX") for head in HEADS]
ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "forward_mode",
    "recurrent_chunk_size",
    "forward_impl",
    "retention_mask",
    "output_retentions",
}


def build(name: str, **changes):
    torch.manual_seed(0)
    config = getattr(retnet, "RetNetConfig" if "RetNet" in name else "NucleusXConfig")
    kernels = changes.pop("kernels", None)
    model = getattr(retnet, name)(config(**SIZES | {"pad_token_id": 0} | changes), kernels)
    return model.double().eval()


def tokens(time: int = 20) -> torch.Tensor:
    return torch.randint(1, 53, (2, time), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CLASSES)
def model(request):
    return build(request.param)


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else next(iter(outputs.values()))


def test_every_published_argument_is_in_the_signature(model):
    wanted = set(ARGUMENTS)
    if "Causal" in type(model).__name__:
        wanted |= {"labels", "logits_to_keep"}
    elif "Classification" in type(model).__name__:
        wanted |= {"labels"}
    assert wanted <= set(inspect.signature(model.forward).parameters)


def test_older_names_mean_the_same(model):
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    now = model(ids, attention_mask=mask, forward_mode="parallel", output_attentions=True)
    then = model(ids, retention_mask=mask, forward_impl="parallel", output_retentions=True)
    assert torch.equal(first(now), first(then))
    assert torch.equal(now.retentions[0], then.retentions[0])
    both = model(ids, attention_mask=mask, retention_mask=mask.clone(), forward_impl="parallel")
    assert torch.equal(first(both), first(now))


def test_two_names_that_disagree_are_refused(model):
    with pytest.raises(ValueError, match="forward_impl is an older name of forward_mode"):
        model(tokens(), forward_mode="parallel", forward_impl="chunkwise")
    with pytest.raises(ValueError, match="retention_mask is an older name of attention_mask"):
        ids = tokens()
        model(ids, attention_mask=torch.ones_like(ids), retention_mask=torch.zeros_like(ids))
    with pytest.raises(TypeError, match="rotation"):
        model(tokens(), rotation=True)


def test_a_tuple_holds_what_there_is_in_the_published_order(model):
    asked = dict(output_hidden_states=True, output_attentions=True, forward_mode="parallel")
    named = model(tokens(), use_cache=True, **asked)
    plain = model(tokens(), use_cache=True, return_dict=False, **asked)
    assert isinstance(plain, tuple) and len(plain) == 4
    assert torch.equal(plain[0], first(named))
    assert plain[1].get_seq_length() == 20
    assert len(plain[2]) == SIZES["decoder_layers"] + 1
    assert torch.equal(plain[3][1], named.retentions[1])
    assert len(model(tokens(), use_cache=False, return_dict=False)) == 1


def test_arguments_may_be_given_in_the_documented_order():
    model, ids = build("RetNetForCausalLM"), tokens()
    mask = torch.ones_like(ids)
    given = (ids, mask, None, None, ids, True, True, True, False, "parallel", 4, 5)
    loss, logits, cache, hidden, retentions = model(*given)
    named = model(ids, labels=ids, output_hidden_states=True)
    torch.testing.assert_close(logits, named.logits[:, -5:])
    assert len(hidden) == 3 and len(retentions) == 2 and cache.length == 20


def test_the_loss_comes_first_in_a_tuple():
    ids = tokens()
    loss, logits = build("RetNetForCausalLM")(ids, labels=ids, use_cache=False, return_dict=False)
    assert loss.shape == () and logits.shape == (2, 20, 53)
    classifier = build("NucleusXForSequenceClassification", num_labels=3)
    labels = torch.tensor([0, 2])
    loss, logits = classifier(ids, labels=labels, use_cache=False, return_dict=False)
    assert loss.shape == () and logits.shape == (2, 3)


def test_the_config_decides_where_an_argument_does_not():
    model = build(
        "RetNetForCausalLM",
        output_hidden_states=True,
        output_attentions=True,
        return_dict=False,
        use_cache=False,
    )
    logits, hidden, retentions = model(tokens())
    assert len(hidden) == 3 and len(retentions) == 2
    out = model(
        tokens(),
        return_dict=True,
        use_cache=True,
        output_hidden_states=False,
        output_attentions=False,
    )
    assert out.hidden_states is None and out.retentions is None
    assert out.past_key_values is not None


def test_retentions_are_the_scores_that_weigh_the_values():
    """Scores times values, through the layer's own norm, gate and projection, are its output."""
    model = build("NucleusXModel")
    layer = model.layers[1].retention
    seen = {}
    layer.register_forward_hook(
        lambda module, args, output: seen.update(x=args[0], y=output[0], scores=output[2])
    )
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :4] = 0
    out = model(tokens(), attention_mask=mask, output_attentions=True)
    scores = out.retentions[1]
    assert out.attentions is out.retentions and torch.equal(scores, seen["scores"])
    assert scores.shape == (2, 2, 20, 20)
    assert not scores.triu(1).any() and not scores[1, :, :4].any() and not scores[1, :, :, :4].any()
    v = layer.v_proj(seen["x"]).view(2, 20, 2, -1)
    o = torch.einsum("bhnm,bmhv->bnhv", scores, v)
    y = layer.out_proj(layer.group_norm(o, layer.g_proj(seen["x"])))
    torch.testing.assert_close(y, seen["y"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["chunkwise", "recurrent"])
def test_forms_without_scores_say_so(mode):
    model = build("RetNetForCausalLM")
    with pytest.raises(ValueError, match=f"forward_mode='{mode}': only the parallel form has"):
        model(tokens(), forward_mode=mode, output_retentions=True)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_the_configs_form_is_the_one_that_runs(name, mode):
    """Also in the bare model, which the published ones ran in the parallel form always."""
    kernels, used = select_kernels(), []

    def counted(form):
        function = getattr(kernels, f"retention_{form}")

        def call(*args, **kwargs):
            used.append(form)
            return function(*args, **kwargs)

        return call

    forms = {f"retention_{form}": counted(form) for form in ("parallel", "chunkwise", "recurrent")}
    model = build(name, forward_mode=mode, kernels=dataclasses.replace(kernels, **forms))
    model(tokens())
    assert used == [mode] * 2
    model(tokens(), forward_mode="chunkwise")
    assert used[2:] == ["chunkwise"] * 2


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(forward_mode="paralel"), "forward_mode='paralel': needed one of parallel, chunkwise"),
        (dict(recurrent_chunk_size=0), "recurrent_chunk_size=0: needed at least 1"),
        (dict(attention_mask=torch.ones(2, 7)), r"attention_mask needs shape \[2, 20\]"),
        (dict(attention_mask=torch.ones(2, 1, 20, 20)), r"attention_mask needs shape \[2, 20\]"),
        (dict(inputs_embeds=torch.zeros(2, 20, 32)), "either input_ids or inputs_embeds"),
    ],
    ids=["form", "chunk size", "short mask", "mask of pairs", "two inputs"],
)
def test_bad_arguments_are_answered_with_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build("RetNetForCausalLM")(tokens(), **arguments)


def test_no_tokens_and_no_kernels_are_answered_with_a_sentence():
    with pytest.raises(ValueError, match=r"at least one token in \[B, T\], got \[2, 0\]"):
        build("RetNetModel")(tokens()[:, :0])
    with pytest.raises(TypeError, match="kernels is a Embedding; needed what select_kernels makes"):
        build("RetNetModel", kernels=torch.nn.Embedding(53, 32))


def test_the_state_is_small_float32_and_made_only_when_asked_for(model):
    model = model.bfloat16()
    for mode in ("parallel", "chunkwise", "recurrent"):
        for time in (1, 20):
            cache = model(tokens(time), forward_mode=mode, use_cache=True).past_key_values
            assert [tuple(s.shape) for s in cache.states] == [(2, 2, 16, 24)] * 2
            assert {s.dtype for s in cache.states} == {torch.float32}
        assert model(tokens(), forward_mode=mode, use_cache=False).past_key_values is None
    assert model(tokens()).past_key_values is not None
    assert model.train()(tokens()).past_key_values is None


@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_shapes_follow_on_the_meta_device(mode):
    with torch.device("meta"):
        model = retnet.RetNetForCausalLM(retnet.RetNetConfig(**SIZES))
        out = model(torch.zeros(2, 9, dtype=torch.long), forward_mode=mode, use_cache=True)
    assert out.logits.shape == (2, 9, 53)
    assert out.past_key_values.states[0].shape == (2, 2, 16, 24)


@pytest.mark.parametrize("mode", ["parallel", "chunkwise", "recurrent"])
def test_autocast_leaves_the_state_in_float32(mode):
    """The state adds up over a document; only the products before it may be narrow."""
    model = build("NucleusXForCausalLM").float()
    exact = model(tokens(), forward_mode=mode, use_cache=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens(), forward_mode=mode, use_cache=True)
    for state, want in zip(out.past_key_values.states, exact.past_key_values.states, strict=True):
        assert state.dtype == torch.float32
        torch.testing.assert_close(state, want, rtol=0.1, atol=0.1)
        assert not torch.equal(state, state.bfloat16().float())
    torch.testing.assert_close(out.logits.float(), exact.logits, rtol=0.1, atol=0.1)


def test_logits_to_keep_takes_a_number_or_positions():
    model, ids = build("RetNetForCausalLM"), tokens()
    whole = model(ids, labels=ids)
    keep = torch.tensor([3, 7, 19])
    torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, whole.logits[:, keep])
    last = model(ids, labels=ids, logits_to_keep=5)
    torch.testing.assert_close(last.logits, whole.logits[:, -5:])
    targets = ids[:, -4:].flatten()
    by_hand = torch.nn.functional.cross_entropy(whole.logits[:, -5:-1].flatten(0, 1), targets)
    torch.testing.assert_close(last.loss.double(), by_hand, rtol=1e-6, atol=0)
