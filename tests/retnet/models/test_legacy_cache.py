"""Caches of the published implementations are read as states: decoding goes on where they stopped,
whatever their layout, with and without padding."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from retnet import NucleusXConfig, NucleusXForCausalLM, NucleusXModel, RetNetForCausalLM
from retnet.kernels.rotation import rotate
from retnet.models.rotary import log_decays, normalizer, rotation_frequencies
from tests.retnet.models import small_model

GOLDEN = Path(__file__).parents[2] / "golden"
LAYOUTS = {
    "torchscale": "dict of two",
    "syncdoth_retnet": "dict of two",
    "nucleusx_reva": "dict of two",
    "hf_add_retnet": "dict of three",
    "nucleusx": "tuple of three",
}
SIZES = small_model.SIZES | dict(vocab_size=53)


def in_layout(layout: str, kv: torch.Tensor, scale: torch.Tensor, length: int):
    if layout == "tuple of three":
        return kv, scale, torch.tensor(length)
    both = {"prev_key_value": kv, "scale": scale}
    return both | {"seqlen": torch.tensor(length)} if layout == "dict of three" else both


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_originals_cache_continues_as_the_original_did(name):
    """The golden cache was written by the original itself; so was what it said next."""
    expected = load_file(GOLDEN / name / "expected.safetensors")
    model_class = NucleusXForCausalLM if "nucleus" in name else RetNetForCausalLM
    model = model_class.from_pretrained(GOLDEN / name)
    ids = expected["input_ids"]
    past = tuple(
        in_layout(LAYOUTS[name], expected[f"cache_kv.{i}"], expected[f"cache_scale.{i}"], 37)
        for i in range(2)
    )
    following = expected["greedy_tokens"][:, :1]
    ours = model(ids, use_cache=True).past_key_values
    for mode in ("recurrent", "parallel", "chunkwise"):
        out = model(following, past_key_values=past, forward_mode=mode, use_cache=True)
        logits, want = out.logits[:, -1], expected["cache_next_logits"]
        assert (logits - want).abs().max() < 5e-6 * want.abs().max()
        assert out.past_key_values.position.tolist() == [38, 38]
        assert out.past_key_values.get_seq_length() == 38
    read = model(following, past_key_values=past, use_cache=True).past_key_values
    kept = model(following, past_key_values=ours, use_cache=True).past_key_values
    for a, b in zip(read.states, kept.states, strict=True):
        assert (a - b).abs().max() < 5e-6 * b.abs().max()


def as_published(cache, config, padding: torch.Tensor, layout: str):
    """Our state written down as the originals do it; `padding` [B]: tokens of left padding, by
    which their rotation is ahead of ours."""
    log_decay = log_decays(config.num_heads, config.use_lm_decay)
    z = normalizer(cache.position[:, None], log_decay)[..., None, None]
    angle = padding[:, None, None, None] * rotation_frequencies(config.key_dim)
    layers = []
    for state in cache.states:
        turned = rotate(state.transpose(-1, -2), angle.cos(), angle.sin(), None, True)
        kv = (turned / (config.key_dim * z).sqrt()).to(state.dtype)
        layers.append(in_layout(layout, kv, z.to(state.dtype), cache.length))
    return layers


@pytest.mark.parametrize("layout", ["dict of two", "dict of three", "tuple of three"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left padded"])
def test_a_cache_survives_the_trip_through_a_published_layout(layout, padded):
    torch.manual_seed(0)
    model = NucleusXForCausalLM(NucleusXConfig(**SIZES)).double().eval()
    ids, following = torch.randint(0, 53, (2, 21)), torch.randint(0, 53, (2, 4))
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, :6] = 0 if padded else 1
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    past = as_published(cache, model.config, 21 - cache.position, layout)
    longer = torch.cat((mask, torch.ones(2, 4, dtype=torch.long)), dim=1)
    want = model(following, attention_mask=longer, past_key_values=cache, use_cache=True)
    got = model(following, attention_mask=longer, past_key_values=past, use_cache=True)
    torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=1e-10)
    assert torch.equal(got.past_key_values.position, want.past_key_values.position)
    assert got.past_key_values.length == want.past_key_values.length == 25


def test_generation_goes_on_from_a_published_cache():
    torch.manual_seed(0)
    model = NucleusXForCausalLM(NucleusXConfig(**SIZES)).double().eval()
    ids = torch.randint(3, 53, (1, 9))
    arguments = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    past = as_published(cache, model.config, torch.zeros(1), "tuple of three")
    mask = torch.ones(1, 9, dtype=torch.long)
    step, text = ids[:, -1:], ids
    for _ in range(5):
        out = model(step, attention_mask=mask, past_key_values=past, use_cache=True)
        step, past = out.logits[:, -1:].argmax(-1), out.past_key_values
        text, mask = torch.cat((text, step), 1), torch.nn.functional.pad(mask, (0, 1), value=1)
    assert torch.equal(model.generate(ids, **arguments), text)


def test_a_cache_that_cannot_tell_its_length_asks_for_a_mask():
    torch.manual_seed(0)
    model = NucleusXModel(NucleusXConfig(**SIZES)).eval()
    ids, step = torch.randint(0, 53, (1, 900)), torch.tensor([[7]])
    cache = model(ids, use_cache=True, forward_mode="chunkwise").past_key_values
    past = as_published(cache, model.config, torch.zeros(1), "dict of two")
    with pytest.raises(ValueError, match="does not say how many tokens .* pass an attention_mask"):
        model(step, past_key_values=past)
    mask = torch.ones(1, 901, dtype=torch.long)
    got = model(step, past_key_values=past, attention_mask=mask).last_hidden_state
    want = model(step, past_key_values=cache).last_hidden_state
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "past, sentence",
    [
        (DynamicCache(), "past_key_values is a DynamicCache; needed what this model returned"),
        ((), "past_key_values is a tuple; needed what this model returned"),
        (({"keys": 1, "values": 2},), r"past_key_values holds \['keys', 'values'\] for a layer"),
        ((torch.zeros(2, 2),), "past_key_values holds Tensor for a layer"),
        (((torch.zeros(1, 4, 12, 8), torch.ones(4), 3),), r"kv \[B, 2, 24, 16\] with scale \[2\]"),
    ],
    ids=["another library's", "empty", "other keys", "tensors", "other heads"],
)
def test_another_cache_is_refused(past, sentence):
    model = NucleusXModel(NucleusXConfig(**SIZES)).eval()
    with pytest.raises(ValueError, match=sentence):
        model(torch.tensor([[7]]), past_key_values=past)


def test_a_cache_of_another_batch_or_depth_is_refused():
    model = NucleusXModel(NucleusXConfig(**SIZES)).eval()
    cache = model(torch.tensor([[7, 8]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="2 layers for 1 sequences; .* 2 layers and got 3 seq"):
        model(torch.tensor([[7]] * 3), past_key_values=cache)
    cache.states = cache.states[:1]
    with pytest.raises(ValueError, match="holds 1 layers for 1 sequences"):
        model(torch.tensor([[7]]), past_key_values=cache)
