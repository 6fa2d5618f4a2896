"""The laws of generation: what is generated is what full passes over the text would choose,
whatever the padding, the beams, the pieces and the caller."""

from pathlib import Path
from threading import Thread

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TextIteratorStreamer,
    pipeline,
)

from retnet.models.generate import sample
from tests.retnet.models.small_model import PLAIN_PIECES, VOCABULARY, build_model

SETTINGS = dict(max_new_tokens=6, eos_token_id=None, pad_token_id=0)
PROMPTS = ("    def decode(self", "return")


@pytest.fixture
def model(architecture):
    return build_model(architecture)


def prompt(seed: int = 0, time: int = 9) -> torch.Tensor:
    return torch.randint(3, 400, (2, time), generator=torch.Generator().manual_seed(seed))


def left_padded(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch with its second row's first four tokens turned into padding, and its mask."""
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids * mask, mask


@pytest.mark.parametrize(
    "mode",
    [
        dict(do_sample=False),
        dict(do_sample=True, num_return_sequences=2),
        dict(do_sample=False, num_beams=4, num_return_sequences=2),
        dict(do_sample=True, num_beams=4, num_return_sequences=2),
    ],
    ids=["greedy", "sampling", "beam search", "beam sampling"],
)
def test_generated_tokens_score_what_a_full_pass_gives_them(model, mode):
    torch.manual_seed(0)
    ids, mask = left_padded(prompt())
    out = model.generate(
        ids,
        attention_mask=mask,
        top_k=0,
        return_dict_in_generate=True,
        output_scores=True,
        **SETTINGS | mode,
    )
    scores = model.compute_transition_scores(
        out.sequences, out.scores, getattr(out, "beam_indices", None), normalize_logits=True
    )
    copies = mode.get("num_return_sequences", 1)
    assert len(out.sequences) == 2 * copies
    assert torch.equal(out.sequences[:, :9], ids.repeat_interleave(copies, dim=0))
    whole = torch.nn.functional.pad(mask, (0, 6), value=1).repeat_interleave(copies, dim=0)
    log_probs = model(out.sequences, attention_mask=whole).logits.log_softmax(-1)[:, 8:-1]
    full = log_probs.gather(-1, out.sequences[:, 9:, None])[..., 0]
    torch.testing.assert_close(scores, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_embeddings_as_prompt_continue_like_their_ids(model, beams):
    ids, mask = left_padded(prompt())
    settings = SETTINGS | dict(attention_mask=mask, num_beams=beams, do_sample=False)
    embeddings = model.get_input_embeddings()(ids)
    continued = model.generate(inputs_embeds=embeddings, **settings)
    assert torch.equal(continued, model.generate(ids, **settings)[:, 9:])


@pytest.mark.parametrize(
    "how",
    [
        dict(use_cache=False),
        dict(forward_mode="parallel"),
        dict(forward_mode="chunkwise", recurrent_chunk_size=4),
        dict(forward_mode="recurrent"),
        dict(forward_impl="chunkwise"),
        dict(prefill_chunk_size=4),
    ],
    ids=str,
)
def test_how_the_prompt_is_read_changes_nothing(model, how):
    ids, mask = left_padded(prompt())
    settings = SETTINGS | dict(attention_mask=mask, do_sample=False)
    assert torch.equal(model.generate(ids, **settings, **how), model.generate(ids, **settings))


@pytest.mark.parametrize("new_alone", [False, True], ids=["whole text", "new tokens"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_conversation_goes_on_from_its_state_as_from_its_text(model, beams, new_alone):
    ids, mask = left_padded(prompt())
    first = model.generate(
        ids, attention_mask=mask, do_sample=False, return_dict_in_generate=True, **SETTINGS
    )
    text = torch.cat((first.sequences, prompt(seed=1, time=5)), dim=1)
    settings = SETTINGS | dict(
        attention_mask=torch.nn.functional.pad(mask, (0, 11), value=1),
        num_beams=beams,
        do_sample=False,
    )
    whole = model.generate(text, **settings)
    state = first.past_key_values
    start = state.get_seq_length() if new_alone else 0
    state.batch_repeat_interleave(beams)
    kept = [x.clone() for x in state.states]
    for _ in range(2):  # a state is a value: going on from it twice gives the same
        on = model.generate(text[:, start:], past_key_values=state, **settings)
        assert torch.equal(on, whole[:, start:])
    assert all(torch.equal(a, b) for a, b in zip(state.states, kept, strict=True))


def test_a_new_token_costs_the_same_however_long_the_text_is(model):
    def decoding(time: int) -> tuple[int, int]:
        past = model(prompt(time=time), use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            after = model(prompt(time=1), past_key_values=past, use_cache=True).past_key_values
        return counter.get_total_flops(), sum(x.numel() for x in after.states)

    assert decoding(8) == decoding(200)


def test_streamed_text_is_the_decoded_text(exported):
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    settings = dict(
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        # Half of a character has no text to stream.
        suppress_tokens=list(range(PLAIN_PIECES)),
    )
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, kwargs=dict(**inputs, **settings, streamer=streamer))
    thread.start()
    streamed = list(streamer)
    thread.join()
    ids = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    assert "".join(streamed) == tokenizer.decode(ids)
    assert len(streamed) > 1


def test_a_pipeline_continues_a_batch_as_it_continues_each_prompt(exported):
    generator = pipeline("text-generation", model=str(exported), device="cpu")
    settings = dict(do_sample=False, return_full_text=False, max_new_tokens=6)
    batch = generator(list(PROMPTS), batch_size=2, **settings)
    for text, (result,) in zip(PROMPTS, batch, strict=True):
        ids = torch.tensor([generator.tokenizer(text)["input_ids"]])
        new = generator.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        expected = generator.tokenizer.decode(new, skip_special_tokens=True)
        assert result["generated_text"] == expected != ""


def test_a_pipeline_classifies_a_batch_as_it_classifies_each_text(exported):
    classifier = AutoModelForSequenceClassification.from_pretrained(
        exported, num_labels=3, pad_token_id=0
    )
    classifier.save_pretrained(exported / "classifier")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    tokenizer.save_pretrained(exported / "classifier")
    classify = pipeline("text-classification", model=str(exported / "classifier"), device="cpu")
    results = classify(list(PROMPTS), batch_size=2, top_k=None)
    for text, result in zip(PROMPTS, results, strict=True):
        logits = classifier.eval()(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        scores = {entry["label"]: entry["score"] for entry in result}
        expected = {f"LABEL_{i}": p for i, p in enumerate(logits.softmax(-1).tolist())}
        assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "mode",
    [
        dict(penalty_alpha=0.6, top_k=4),
        dict(penalty_alpha=0.6, top_k=4, trust_remote_code=True),
        dict(generation_config=GenerationConfig(penalty_alpha=0.6, top_k=4)),
        dict(assistant_model=build_model("retnet")),
        dict(assistant_early_exit=1),
        dict(prompt_lookup_num_tokens=3),
    ],
    ids=["contrastive", "contrastive from the hub", "config", "assistant", "early exit", "lookup"],
)
def test_modes_that_take_tokens_back_are_refused_before_anything_runs(model, mode):
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="cropped"):
        model.generate(prompt(), max_new_tokens=3, **mode)


def test_a_state_refuses_to_be_cropped(model):
    """Another model that takes ours as its assistant crops the assistant's state."""
    state = model(prompt(), use_cache=True).past_key_values
    assert not state.is_croppable
    with pytest.raises(ValueError, match="cropped"):
        state.crop(1)
    sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    other = LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes))
    with pytest.raises(ValueError, match="cropped"):
        other.generate(prompt()[:1], assistant_model=model, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("given", ["argument", "config"])
@pytest.mark.parametrize("name", ["static", "dynamic", "quantized", "offloaded"])
def test_another_cache_is_refused(model, name, given):
    asked = dict(cache_implementation=name)
    if given == "config":
        asked = dict(generation_config=GenerationConfig(**asked))
    with pytest.raises(ValueError, match=f"cache_implementation='{name}'"):
        model.generate(prompt(), max_new_tokens=3, **asked)


@pytest.mark.parametrize("given", ["argument", "config"])
def test_scores_of_a_recurrent_decoding_are_refused_at_the_door(model, given):
    model.config.output_attentions = given == "config"
    asked = dict(output_attentions=True) if given == "argument" else {}
    with pytest.raises(ValueError, match="config.output_attentions=False"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, **asked)


def test_a_sample_of_a_padded_vocabulary_has_the_known_tokens_alone(tmp_path: Path) -> None:
    build_model("retnet").save_pretrained(tmp_path)
    before = torch.get_rng_state()
    drawn = sample(tmp_path, [1], 30, seed=3, known=PLAIN_PIECES)
    assert max(drawn) < PLAIN_PIECES
    assert sample(tmp_path, [1], 30, seed=3, known=PLAIN_PIECES) == drawn
    assert max(sample(tmp_path, [1], 30, seed=3, known=VOCABULARY)) >= PLAIN_PIECES
    assert torch.equal(torch.get_rng_state(), before)
