"""Passkey retrieval (arXiv:2305.16300, section 4.3): a number is hidden in a long and empty text,
and the model is asked for it at the end. In the recurrent form: memory does not grow with the
length.

The answer is forced: one reading of the text with the right answer behind it says whether each of
the answer's tokens was the likeliest one, and how likely it was.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.evaluation.asked import Asked, Result, Tokenizer

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
KEY = "The pass key is {}. Remember it. {} is the pass key. "
QUESTION = "What is the pass key? The pass key is"
ANSWER = " {}."
PIECE = 128
"""Tokens that are read at once."""
ROWS = 16
"""Texts that are read at once, at most."""


class Text(NamedTuple):
    """One text of a length, with the answer at its end."""

    ids: list[int]
    answer: int
    """Tokens of the answer."""


def find_passkeys(asked: Asked) -> Result:
    """Accuracy and nats per token of the answer by length and depth; `passkey/<k>x/accuracy` and
    `.../nats` are the means over a length."""
    config, lengths, grids, values = asked.config, [], [], {}
    depths = depths_of(config.passkey_depths)
    for times in config.lengths:
        length = times * asked.length
        texts = [
            write_text(asked.tokenizer, length, depth, digits(asked.seed, length, depth, trial))
            for depth in depths
            for trial in range(config.passkey_trials)
        ]
        if None in texts:
            continue
        cells = look_for(asked, texts).reshape(len(depths), config.passkey_trials, 2).mean(1)
        values[f"passkey/{times}x/accuracy"] = float(cells[:, 0].mean())
        values[f"passkey/{times}x/nats"] = float(cells[:, 1].mean())
        lengths.append(length)
        grids.append(cells)
    if not lengths:
        return Result({}, [], f"no text of {length:,} tokens has room for a pass key")
    accuracy, nats = torch.stack(grids).unbind(-1)
    grid = {"accuracy": accuracy.tolist(), "nats": nats.tolist(), "trials": config.passkey_trials}
    detail = {"length": asked.length, "lengths": lengths, "depths": depths, **grid}
    return Result(values, [detail])


def depths_of(count: int) -> list[float]:
    """Evenly from 0, the beginning, to 1."""
    return [0.5] if count == 1 else [at / (count - 1) for at in range(count)]


def digits(seed: int, length: int, depth: float, trial: int) -> str:
    """The five digits of one text."""
    words = f"{seed} {length} {depth:.6f} {trial}".encode()
    return str(10_000 + int.from_bytes(hashlib.blake2b(words, digest_size=8).digest()) % 90_000)


def write_text(tokenizer: Tokenizer, length: int, depth: float, key: str) -> Text | None:
    """A text of exactly `length` tokens, the answer among them; the key stands at a beginning of a
    sentence nearest to `depth`. None where there is no room."""
    filler, answer = tokenizer.encode(FILLER), tokenizer.encode(ANSWER.format(key))
    hidden, question = tokenizer.encode(KEY.format(key, key)), tokenizer.encode(QUESTION)
    room = length - 1 - len(hidden) - len(question) - len(answer)
    if room < 0:
        return None
    noise = (filler * (room // len(filler) + 1))[:room]
    at = min(round(depth * room / len(filler)) * len(filler), room)
    ids = [tokenizer.bos_id, *noise[:at], *hidden, *noise[at:], *question, *answer]
    return Text(ids, len(answer))


def look_for(asked: Asked, texts: list[Text]) -> Tensor:
    """[texts, 2]: whether the answer came, and its nats per token. Collective.

    All texts are of one length, and are read together, as many at once on every rank.
    """
    at_once = min(ROWS, -(-len(texts) // asked.world_size))
    groups = [texts[at : at + at_once] for at in range(0, len(texts), at_once)]
    answers = asked.deal(groups, lambda group: read_texts(asked, group))
    return torch.tensor([answer for group in answers for answer in group], dtype=torch.float64)


def read_texts(asked: Asked, texts: list[Text]) -> list[tuple[float, float]]:
    """(1.0 where the answer came else 0.0, nats per token of it) of texts of one length."""
    ids = torch.tensor([text.ids for text in texts])
    asked_for = max(text.answer for text in texts)
    inputs, last = ids[:, :-1], max(PIECE, asked_for)
    # The first piece is the odd one, so that the last has the whole answer in it.
    edges = [*range(inputs.shape[1], 0, -last)][::-1]
    state, begin = None, 0
    for end in edges:
        output = asked.forward(
            inputs[:, begin:end], state, forward_mode="recurrent", logits_to_keep=asked_for
        )
        state, begin = output.past_key_values, end
    chances = output.logits.float().log_softmax(-1).cpu()  # [B, answer, vocabulary]
    found = []
    for text, row in zip(texts, chances, strict=True):
        row, answer = row[-text.answer :], torch.tensor(text.ids[-text.answer :])
        nats = -row.gather(-1, answer[:, None]).mean().item()
        found.append((float((row.argmax(-1) == answer).all()), nats))
    return found
