"""What the tests of this room ask with: letters as tokens, and held-out texts made of them."""

import random

import numpy as np
import torch

from data.documents import HeldOut, encode_document
from data.validation import ValidationSet
from retnet.evaluation.asked import Asked
from retnet.evaluation.config import EvaluationConfig

LENGTH = 64
"Tokens of a row in training; not enough for a text with a pass key."
VOCABULARY = 3 + 256


class Letters:
    """A token for each byte."""

    bos_id, eos_id, vocab_size = 1, 2, VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(index - 3 for index in ids if index > 2).decode(errors="replace")


def held_out(sizes: list[int], rank: int = 0, world_size: int = 1) -> ValidationSet:
    """Documents of so many tokens each, <bos> and <eos> counted."""
    draw, tokenizer = random.Random(0), Letters()
    texts = ["".join(draw.choices("abcdefgh \n", k=size - 2)) for size in sizes]
    ids = [encode_document(tokenizer, text).astype(np.int32) for text in texts]
    share = dict(length=LENGTH, eos_id=2, batch_size=2, rank=rank, world_size=world_size)
    return ValidationSet("held_out", HeldOut(ids, sum(map(len, texts)), texts), **share)


def asked_of(engine: torch.nn.Module, **changes) -> Asked:
    """A question by one rank alone."""
    given = dict(
        engine=engine,
        tokenizer=Letters(),
        validation=[held_out([600, 700, 90, 1000])],
        config=EvaluationConfig(sample_tokens=12, rows=3, passkey_depths=3, passkey_trials=2),
        seed=0,
        step=0,
        length=LENGTH,
        rank=0,
        world_size=1,
        gather=lambda value: [value],
        stop=lambda: False,
    )
    return Asked(**given | changes)
