"""The text holds its key once and asks for it at the end; the answer is judged as a parallel pass
over the whole text judges it; memory does not grow with the text."""

import re
from pathlib import Path

import pytest
import torch

from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.passkey import depths_of, digits, find_passkeys, write_text
from tests import forked
from tests.retnet.evaluation.questions import VOCABULARY, Letters, asked_of
from tests.retnet.models.small_model import build_model

CONFIG = EvaluationConfig(lengths=[1, 3, 5], passkey_depths=3, passkey_trials=2)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("length", [140, 333, 2000])
def test_a_text_has_its_length_and_the_key_where_it_should_be(length: int, depth: float) -> None:
    text = write_text(Letters(), length, depth, "31415")
    words = Letters().decode(text.ids)
    assert len(text.ids) == length and text.ids[0] == Letters.bos_id
    assert words.endswith("What is the pass key? The pass key is 31415.")
    assert Letters().decode(text.ids[-text.answer :]) == " 31415."
    assert words.count("31415") == 3
    begin = words.index("The pass key is 31415. Remember")
    assert abs(begin - depth * length) < 150  # the question, the key itself, half a filler
    assert re.match(r"^$|.*[.] $", words[:begin], re.DOTALL) or depth == 1.0


def test_a_text_without_room_is_no_text() -> None:
    assert write_text(Letters(), 60, 0.5, "31415") is None
    result = find_passkeys(asked_of(build_model("retnet", vocab_size=VOCABULARY), length=10))
    assert not result.values and "has room for a pass key" in result.words


def test_digits_are_five_and_differ() -> None:
    found = {digits(0, 512, depth, trial) for depth in depths_of(5) for trial in range(20)}
    assert all(re.fullmatch("[1-9][0-9]{4}", key) for key in found) and len(found) > 95
    assert digits(0, 512, 0.5, 1) == digits(0, 512, 0.5, 1) != digits(1, 512, 0.5, 1)


def test_the_answer_is_judged_as_by_a_parallel_pass(architecture: str) -> None:
    model = build_model(architecture, vocab_size=VOCABULARY)
    result = find_passkeys(asked_of(model, config=CONFIG))
    (detail,) = result.details
    assert detail["lengths"] == [192, 320] and detail["depths"] == [0.0, 0.5, 1.0]
    for row, length in enumerate(detail["lengths"]):
        for column, depth in enumerate(detail["depths"]):
            nats, right = [], []
            for trial in range(2):
                text = write_text(Letters(), length, depth, digits(0, length, depth, trial))
                ids = torch.tensor([text.ids])
                logits = model(ids[:, :-1], forward_mode="parallel").logits[0, -text.answer :]
                answer = ids[0, -text.answer :]
                nats.append(torch.nn.functional.cross_entropy(logits, answer).item())
                right.append(float((logits.argmax(-1) == answer).all()))
            assert detail["nats"][row][column] == pytest.approx(sum(nats) / 2, rel=1e-4)
            assert detail["accuracy"][row][column] == sum(right) / 2
    means = [sum(row) / 3 for row in detail["nats"]]
    assert [result.values[f"passkey/{k}x/nats"] for k in (3, 5)] == pytest.approx(means)


def test_a_model_that_knows_the_answer_is_right() -> None:
    """One that was fitted to the very text; with other digits it is wrong."""
    model = build_model("retnet", vocab_size=VOCABULARY, decoder_embed_dim=64)
    one = EvaluationConfig(lengths=[3], passkey_depths=1, passkey_trials=1)
    text = write_text(Letters(), 192, 0.5, digits(0, 192, 0.5, 0))
    ids = torch.tensor([text.ids])
    labels = ids[:, 1:].clone()
    labels[:, : -text.answer] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(ids[:, :-1], shift_labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert find_passkeys(asked_of(model, config=one)).values["passkey/3x/accuracy"] == 1.0
        other = find_passkeys(asked_of(model, config=one, seed=5)).values
    assert other["passkey/3x/accuracy"] == 0.0 < other["passkey/3x/nats"]


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """The most memory of a process that reads 384 tokens, twice, and then ten times as many."""
    command = ["-m", "tests.retnet.evaluation.reading", "384", "384", "3840"]
    done = forked.run(*command, folder=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    _, short, long = map(int, done.stdout.split())
    # Read at once, the other tokens take 77 MB more; the allocator gives or takes a few.
    assert long - short < 16 * 2**20, (short, long)
