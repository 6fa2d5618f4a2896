"""Texts are what transformers' own decoding writes, and are drawn the same way each time."""

import pytest
import torch

from retnet.evaluation.samples import choose, generate, write_samples
from tests.retnet.evaluation.questions import VOCABULARY, Letters, asked_of
from tests.retnet.models.small_model import build_model


def test_greedy_text_is_what_generate_writes(architecture: str) -> None:
    model = build_model(architecture, vocab_size=VOCABULARY)
    for prompt in ("", "def f(x):", "a" * 40):
        ids = torch.tensor([[Letters.bos_id, *Letters().encode(prompt)]])
        theirs = model.generate(ids, max_new_tokens=15, do_sample=False)[0, ids.shape[1] :].tolist()
        theirs = theirs[: theirs.index(2)] if 2 in theirs else theirs
        with torch.no_grad():
            assert generate(asked_of(model), prompt, 15) == theirs


def test_a_text_is_a_function_of_seed_and_prompt() -> None:
    model = build_model("retnet", vocab_size=VOCABULARY)
    config = asked_of(model).config
    config.prompts = ["ab", "ab", "cd"]

    def texts(**changes) -> list[str]:
        with torch.no_grad():
            details = write_samples(asked_of(model, config=config, **changes)).details
        assert [detail["prompt"] for detail in details] == config.prompts
        return [detail["text"] for detail in details]

    first = texts()
    torch.manual_seed(123)
    assert texts(step=50) == first and first[0] == first[1] != first[2]
    assert texts(seed=1) != first


def test_nothing_follows_the_end_of_a_document() -> None:
    model = build_model("retnet", vocab_size=VOCABULARY)
    with torch.no_grad():
        ends_at = Letters()
        ends_at.eos_id = -1
        whole = generate(asked_of(model, tokenizer=ends_at), "x", 10)
        ends_at.eos_id = whole[4]
        assert (
            generate(asked_of(model, tokenizer=ends_at), "x", 10) == whole[: whole.index(whole[4])]
        )


def test_a_padded_vocabulary_writes_what_the_tokenizer_knows() -> None:
    model = build_model("retnet", vocab_size=4 * VOCABULARY)
    drawn = (1.0, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert max(generate(asked_of(model), "ab", 20, *drawn)) < VOCABULARY


@pytest.mark.parametrize("top_p", [0.3, 0.75, 1.0])
def test_only_the_likeliest_tokens_are_drawn_as_often_as_they_should_be(top_p: float) -> None:
    chances = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    kept = {0.3: [1], 0.75: [1, 3, 4], 1.0: [0, 1, 2, 3, 4]}[top_p]
    generator = torch.Generator().manual_seed(0)
    drawn = [choose(chances.log() * 0.5, 0.5, top_p, generator) for _ in range(4000)]
    assert set(drawn) == set(kept)
    for token in kept:
        share = chances[token] / chances[kept].sum()
        assert drawn.count(token) / 4000 == pytest.approx(share.item(), abs=0.03)


def test_without_temperature_the_likeliest_is_taken() -> None:
    assert choose(torch.tensor([0.1, 3.0, 2.9]), 0.0, 0.1, None) == 1


def test_logits_that_overflowed_end_no_run() -> None:
    drawn = (0.8, 0.95, torch.Generator().manual_seed(0))
    for odd in (float("nan"), float("inf")):
        assert choose(torch.tensor([0.1, odd, odd]), *drawn) == 1
