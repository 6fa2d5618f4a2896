"""Text that the model writes: samples from fixed prompts, and the decoding that lm-eval's tasks use
too. The prompt is read at once, what follows is decoded recurrently.

No end of a text ends the decoding, which would leave other ranks alone in their forward passes: all
write equally many tokens, and what comes after <eos> is cut off.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from retnet.evaluation.asked import Asked, Result


def write_samples(asked: Asked) -> Result:
    """One text for each prompt; the same prompt draws the same numbers at each step of a run."""
    config = asked.config

    def write(prompt: str) -> str:
        digest = hashlib.blake2b(f"{asked.seed} {prompt}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn = (config.temperature, config.top_p, generator)
        return asked.tokenizer.decode(generate(asked, prompt, config.sample_tokens, *drawn))

    texts = asked.deal(config.prompts, write)
    pairs = zip(config.prompts, texts, strict=True)
    return Result({}, [{"prompt": prompt, "text": text} for prompt, text in pairs])


def generate(
    asked: Asked,
    prompt: str,
    new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The ids that follow `prompt` at the beginning of a document, at most `new_tokens`, without
    <eos>; in exactly that many forward passes. Collective."""
    tokenizer = asked.tokenizer
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    written: list[int] = []
    given, state, form = torch.tensor([prompt_ids]), None, "chunkwise"
    for _ in range(new_tokens):
        output = asked.forward(given, state, forward_mode=form, logits_to_keep=1)
        known = output.logits[0, -1, : tokenizer.vocab_size]  # a padded vocabulary has more
        written.append(choose(known, temperature, top_p, generator))
        given, state, form = torch.tensor([written[-1:]]), output.past_key_values, "recurrent"
    end = written.index(tokenizer.eos_id) if tokenizer.eos_id in written else len(written)
    return written[:end]


def choose(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> int:
    """A token by its logits [vocabulary]: the likeliest one at temperature 0, else drawn from the
    likeliest ones that together have the probability `top_p` (arXiv:1904.09751)."""
    logits = logits.float().cpu()
    if temperature == 0.0 or not logits.isfinite().all():  # float16 may overflow: nothing to draw
        return int(logits.argmax())
    chances, tokens = (logits / temperature).softmax(-1).sort(descending=True)
    chances[chances.cumsum(-1) - chances > top_p] = 0.0  # the likeliest one always stays
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])
