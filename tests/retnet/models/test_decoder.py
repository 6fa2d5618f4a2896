"""The laws of the models: one result for all forms, cuts, masks and packings; nothing moves when
cast."""

import pytest
import torch

from retnet import (
    NucleusXConfig,
    NucleusXForCausalLM,
    RetNetConfig,
    RetNetForCausalLM,
)

SIZES = dict(
    vocab_size=53,
    decoder_layers=2,
    decoder_embed_dim=32,
    decoder_retention_heads=2,
    decoder_value_embed_dim=48,
    decoder_ffn_embed_dim=40,
    recurrent_chunk_size=8,
)
VARIANTS = {
    "retnet with layer norm": (RetNetForCausalLM, RetNetConfig(**SIZES)),
    "retnet with glu": (RetNetForCausalLM, RetNetConfig(**SIZES, use_glu=True)),
    "retnet with deepnorm": (RetNetForCausalLM, RetNetConfig(**SIZES, deepnorm=True)),
    "nucleus x": (NucleusXForCausalLM, NucleusXConfig(**SIZES)),
    "nucleus x with lm decay": (NucleusXForCausalLM, NucleusXConfig(**SIZES, use_lm_decay=True)),
}
MODES = ("parallel", "chunkwise", "recurrent")
TIME = 37


def build(name: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    model_class, config = VARIANTS[name]
    return model_class(config).to(dtype).eval()


@pytest.fixture(params=list(VARIANTS))
def model(request):
    return build(request.param)


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 53, (2, TIME), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def packed_starts() -> torch.Tensor:
    starts = torch.zeros(2, TIME, dtype=torch.int32)
    starts[0, 9:], starts[0, 20:], starts[1, 16:] = 9, 20, 16
    return starts


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("padding", ["none", "left", "right", "interior"])
def test_the_forms_are_one(model, packed, padding):
    ids = tokens()
    mask = torch.ones(2, TIME, dtype=torch.long)
    where = {"left": slice(0, 5), "right": slice(30, None), "interior": slice(11, 15)}
    if padding != "none":
        mask[1, where[padding]] = 0
    embeds = model.model.embed_tokens(ids).detach()
    results = []
    for mode in MODES:
        x = embeds.clone().requires_grad_()
        out = model(
            inputs_embeds=x,
            attention_mask=mask if padding != "none" else None,
            segment_start=packed_starts() if packed else None,
            forward_mode=mode,
            use_cache=True,
        )
        real = out.logits * mask[..., None]
        gradient = torch.autograd.grad(real.square().sum(), x)[0] * mask[..., None]
        cache = out.past_key_values
        results.append((real, gradient, *cache.states, cache.position))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            close(a, b)


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("cut", [1, 8, 21])
def test_a_sequence_cut_anywhere_gives_what_the_whole_gives(model, first, second, cut):
    ids = tokens()
    whole = model(ids, use_cache=True)
    before = model(ids[:, :cut], forward_mode=first, use_cache=True)
    after = model(
        ids[:, cut:], forward_mode=second, past_key_values=before.past_key_values, use_cache=True
    )
    close(torch.cat((before.logits, after.logits), dim=1), whole.logits)
    for a, b in zip(after.past_key_values.states, whole.past_key_values.states, strict=True):
        close(a, b)
    assert torch.equal(after.past_key_values.position, whole.past_key_values.position)
    assert after.past_key_values.get_seq_length() == TIME


@pytest.mark.parametrize("order", ["pcr", "rpc", "crp"])
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("padding", ["none", "left", "right", "interior"])
def test_pieces_in_other_forms_chain_through_padding_and_documents(model, packed, padding, order):
    """Three pieces, a form each, the state handed on: outputs, state and gradients of one pass."""
    ids, starts = tokens(), packed_starts()
    mask = torch.ones(2, TIME, dtype=torch.long)
    where = {"left": slice(0, 14), "right": slice(25, None), "interior": slice(10, 27)}
    if padding != "none":
        mask[1, where[padding]] = 0
    embeds = model.model.embed_tokens(ids).detach()

    def run(cuts: list[int], modes: list[str]):
        x, past, logits = embeds.clone().requires_grad_(), None, []
        for first, last, mode in zip(cuts, cuts[1:], modes, strict=False):
            out = model(
                inputs_embeds=x[:, first:last],
                attention_mask=mask[:, first:last],
                segment_start=starts[:, first:last] - first if packed else None,
                past_key_values=past,
                forward_mode=mode,
                use_cache=True,
            )
            past = out.past_key_values
            logits.append(out.logits)
        real = torch.cat(logits, dim=1) * mask[..., None]
        gradient = torch.autograd.grad(real.square().sum(), x)[0]
        return real, gradient * mask[..., None], *past.states, past.position

    named = {mode[0]: mode for mode in MODES}
    whole = run([0, TIME], ["parallel"])
    pieces = run([0, 11, 24, TIME], [named[letter] for letter in order])
    for a, b in zip(pieces, whole, strict=True):
        close(a, b)


def test_packed_documents_do_not_see_each_other(model):
    ids = tokens()
    packed = model(ids, segment_start=packed_starts()).logits
    close(packed[:1, 9:20], model(ids[:1, 9:20]).logits)
    close(packed[1:, 16:], model(ids[1:, 16:]).logits)


@pytest.mark.parametrize("padding", ["left", "right", "interior"])
def test_masked_tokens_change_nothing(model, padding):
    ids = tokens()[:1]
    mask = torch.ones(1, TIME, dtype=torch.long)
    mask[0, {"left": slice(0, 5), "right": slice(30, None), "interior": slice(11, 15)}[padding]] = 0
    keep = mask[0].bool()
    masked = model(ids, attention_mask=mask, use_cache=True)
    dense = model(ids[:, keep], use_cache=True)
    close(masked.logits[:, keep], dense.logits)
    following = torch.tensor([[7, 8, 9]])
    close(
        model(following, past_key_values=masked.past_key_values).logits,
        model(following, past_key_values=dense.past_key_values).logits,
    )


def test_the_future_is_not_seen(model):
    ids = tokens()
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 53
    for mode in MODES:
        a, b = (model(x, forward_mode=mode).logits for x in (ids, changed))
        close(a[:, :20], b[:, :20])
        assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_greedy_generation_is_the_argmax_of_full_passes(model):
    ids = tokens()[:, :9]
    generated = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for _ in range(8):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generated, ids)


def test_generation_ignores_left_padding(model):
    ids = tokens()[:1, :9]
    alone = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    generated = model.generate(
        padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(generated[:, 13:], alone[:, 9:])


def test_beam_search_moves_the_state_with_its_beam(model):
    """Beam search scores must be those of a full pass over the text it returns."""
    ids = tokens()[:1, :9]
    out = model.generate(
        ids,
        max_new_tokens=6,
        num_beams=3,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    log_probs = model(out.sequences).logits.log_softmax(-1)[:, 8:-1]
    total = log_probs.gather(-1, out.sequences[:, 9:, None]).sum() / 6
    # generate keeps its scores in float32
    torch.testing.assert_close(out.sequences_scores[0].double(), total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["retnet with glu", "nucleus x"])
def test_casting_to_bfloat16_moves_no_angle_decay_or_position(name):
    model, ids = build(name, torch.float32), torch.randint(0, 53, (1, 3000))

    def where(m):
        positions, after = m.model.locate(m.model.embed_tokens(ids), None, None, None)
        return positions.cos, positions.sin, positions.query_scale, positions.log_decay, after

    before = where(model)
    after = where(model.bfloat16())
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert not list(model.buffers())


def test_distant_positions_keep_their_angles():
    """A sequence far into a document equals the same one near its start, up to Z, which has
    converged."""
    model, ids = build("nucleus x with lm decay", torch.float32), tokens()[:1]

    def far(position: int) -> torch.Tensor:
        past = model(ids[:, :1], use_cache=True).past_key_values
        past.states = [torch.zeros_like(s) for s in past.states]
        past.position = torch.tensor([position])
        return model(ids, past_key_values=past).logits

    torch.testing.assert_close(far(20_000), far(5_000_000), rtol=0, atol=1e-4)


def test_logits_to_keep_keeps_the_last(model):
    ids = tokens()
    close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])
