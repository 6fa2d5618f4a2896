"""A sample of text from an exported model."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.no_grad()
def sample(folder: Path, prompt_ids: list[int], new_tokens: int, seed: int) -> list[int]:
    """Loads the model in `folder` in float32 and continues `prompt_ids` by at most `new_tokens`
    tokens.

    Temperature 0.8, nucleus 0.95. Returns the new ids only. The seed makes it repeatable and leaves
    the caller's random numbers alone.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ids = model.generate(
            torch.tensor([prompt_ids]),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
            top_k=0,
        )
    return ids[0, len(prompt_ids) :].tolist()
