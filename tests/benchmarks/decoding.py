"""C9: decoding a batch of 8 at a given context, beside transformers' Llama with its caches.

Caches and states are filled with random numbers instead of a prompt: the cost of a token does not
depend on what they hold. What comes out is checked on a short prompt.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, LlamaForCausalLM, StaticCache

from retnet.models.heads import DecoderForCausalLM
from retnet.models.state import RetentionCache
from tests.benchmarks.measure import (
    MOST_PAIRS,
    Case,
    Comparison,
    Contender,
    Settings,
    relative_error,
)
from tests.benchmarks.models import llama, our_config, our_model

BATCH, TOKENS = 8, 8
"Sequences, and tokens of each that a turn decodes."
Past = RetentionCache | Cache


def decoder(
    model: nn.Module, past: Past, truth: nn.Module, vocabulary: int, base: bool = False
) -> Contender:
    """Decodes `TOKENS` tokens a turn, going on where the last turn ended."""

    def run(tokens: Tensor) -> None:
        nonlocal past
        for token in tokens.split(1, dim=1):  # [B, 1]
            past = model(input_ids=token, past_key_values=past, use_cache=True).past_key_values

    def check(inputs: tuple, outputs: None) -> float:
        """A prompt of 63 tokens and a token more, against 64 at once in float64."""
        ids = torch.randint(vocabulary, (BATCH, 64))
        prompt = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        found = model(input_ids=ids[:, -1:], past_key_values=prompt, use_cache=True).logits
        return relative_error([found], [truth(input_ids=ids, use_cache=False).logits[:, -1:]])

    return Contender(torch.inference_mode()(run), base, torch.inference_mode()(check), parts=TOKENS)


def filled_state(model: DecoderForCausalLM, context: int) -> RetentionCache:
    """Our state after `context` tokens."""
    config = model.config
    shape = BATCH, config.num_heads, config.key_dim, config.value_dim // config.num_heads
    states = [torch.randn(shape) for _ in range(config.num_layers)]
    return RetentionCache(states, torch.full((BATCH,), context), context)


def filled_cache(cache: Cache, model: LlamaForCausalLM, context: int) -> Cache:
    """Llama's cache after `context` tokens."""
    config = model.config
    shape = BATCH, config.num_key_value_heads, context, config.head_dim
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), layer)
    return cache


def decode(settings: Settings) -> Iterator[Comparison]:
    """C9: at 2k and 8k tokens of context."""
    vocabulary = our_config(settings).vocab_size

    def build(make: Callable[[Settings], nn.Module]) -> tuple[nn.Module, nn.Module]:
        model = make(settings).bfloat16().eval()
        truth = make(settings).double().eval()
        truth.load_state_dict(model.state_dict())
        return model, truth

    ours, our_truth = build(our_model)
    theirs, their_truth = build(llama)
    for context in (settings.size(2048, 64), settings.size(8192, 128)):
        longest = context + TOKENS * (MOST_PAIRS + 2)
        caches = {
            "Llama, growing cache": DynamicCache(config=theirs.config),
            "Llama, static cache": StaticCache(config=theirs.config, max_cache_len=longest),
        }
        contenders = {
            "ours, recurrent": decoder(
                ours, filled_state(ours, context), our_truth, vocabulary, base=True
            )
        }
        for name, cache in caches.items():
            past = filled_cache(cache, theirs, context)
            contenders[name] = decoder(theirs, past, their_truth, vocabulary)
        yield Comparison(
            f"one token of {BATCH} sequences, bfloat16, context {context}",
            contenders,
            lambda: (torch.randint(vocabulary, (BATCH, TOKENS)),),
        )


CASES = (Case("c9", "decoding with 23 million parameters", decode),)
