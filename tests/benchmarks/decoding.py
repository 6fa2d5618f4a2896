"""C9: decoding a batch of 8 at a given context, beside transformers' Llama with its caches and the
recurrent forms of the named checkouts of other RetNets; ours and theirs also compiled.

Caches and states are filled without a prompt: the cost of a token does not depend on what they
hold. What comes out is checked on a short prompt.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import Cache, DynamicCache, LlamaForCausalLM, StaticCache

from retnet.models.heads import DecoderForCausalLM
from retnet.models.state import RetentionCache
from retnet.training.compile import compile_blocks
from tests.benchmarks.measure import (
    MOST_PAIRS,
    Case,
    Comparison,
    Contender,
    Settings,
    relative_error,
)
from tests.benchmarks.models import compile_layers, llama, our_config, our_model
from tests.benchmarks.peer_modules import Past as PeerPast

BATCH, TOKENS = 8, 8
"Sequences, and tokens of each that a turn decodes."
Past = RetentionCache | Cache | PeerPast
Pair = tuple[nn.Module, nn.Module]
"A model in bfloat16, and the truth about it."


def decoder(
    model: nn.Module,
    past: Past,
    truth: nn.Module,
    vocabulary: int,
    base: bool = False,
    empty: Callable[[], Past | None] = lambda: None,
) -> Contender:
    """Decodes `TOKENS` tokens a turn, going on where the last turn ended. empty: the past of a
    prompt."""

    def run(tokens: Tensor) -> None:
        nonlocal past
        for token in tokens.T.contiguous().unsqueeze(-1):  # [B, 1]
            past = model(input_ids=token, past_key_values=past, use_cache=True).past_key_values

    def check(inputs: tuple, outputs: None) -> float:
        """A prompt of 63 tokens and a token more, against 64 at once in float64."""
        ids = torch.randint(vocabulary, (BATCH, 64))
        prompt, token = ids[:, :-1], ids[:, -1:].contiguous()
        # A graph for the prompt's length would be made for this alone.
        with torch.compiler.set_stance("force_eager"):
            begun = model(input_ids=prompt, past_key_values=empty(), use_cache=True).past_key_values
        found = model(input_ids=token, past_key_values=begun, use_cache=True).logits
        return relative_error([found], [truth(input_ids=ids, use_cache=False).logits[:, -1:]])

    return Contender(torch.inference_mode()(run), base, torch.inference_mode()(check), parts=TOKENS)


@torch.inference_mode()  # as the states that come out: other tensors would have another graph
def filled_state(model: DecoderForCausalLM, context: int) -> RetentionCache:
    """Our state after `context` tokens."""
    config = model.config
    shape = BATCH, config.num_heads, config.key_dim, config.value_dim // config.num_heads
    states = [torch.randn(shape) for _ in range(config.num_layers)]
    return RetentionCache(states, torch.full((BATCH,), context), context)


@torch.inference_mode()
def filled_cache(cache: Cache, model: LlamaForCausalLM, context: int) -> Cache:
    """Llama's cache after `context` tokens."""
    config = model.config
    shape = BATCH, config.num_key_value_heads, context, config.head_dim
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), layer)
    return cache


def with_truth(make: Callable[[], nn.Module]) -> Pair:
    """A model in bfloat16, and one in float64 with the same weights. The latter stays in training
    mode, where nothing is dropped either: in evaluation syncdoth's parallel form makes a state of
    every token."""
    model, truth = make().bfloat16().eval(), make().double()
    truth.load_state_dict(model.state_dict())
    return model, truth


def recurrent_models(settings: Settings) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """Ours and the named peers', each also compiled, by their contenders' names."""
    model, truth = with_truth(lambda: our_model(settings))
    compiled = deepcopy(model)
    backend = "aot_eager" if settings.quick else "inductor"
    compile_blocks(compiled.model.layers, Path(default_cache_dir()), backend)
    ours = {"ours, recurrent": (model, truth), "ours, recurrent, compiled": (compiled, truth)}
    peers, config = {}, model.config
    for peer in settings.peers.values():
        for name, make in peer.decoders(config).items():
            model, truth = with_truth(make)
            peers[name] = model, truth
            peers[f"{name}, compiled"] = compile_layers(deepcopy(model), settings), truth
    return ours, peers


def llama_decoders(
    settings: Settings, model: LlamaForCausalLM, truth: nn.Module, context: int
) -> dict[str, Contender]:
    """Llama with the caches that transformers has; compiled whole, as its `generate` does it."""
    vocabulary, config = our_config(settings).vocab_size, model.config
    compiled = deepcopy(model)
    compiled.compile(dynamic=False, backend="aot_eager" if settings.quick else "inductor")

    @torch.inference_mode()  # it counts in a tensor
    def static() -> Cache:
        return StaticCache(config=config, max_cache_len=context + TOKENS * (MOST_PAIRS + 2))

    found = {}
    for name, inner, empty in (
        ("growing cache", model, lambda: DynamicCache(config=config)),
        ("static cache", model, static),
        ("static cache, compiled", compiled, static),
    ):
        past = filled_cache(empty(), model, context)
        found[f"Llama, {name}"] = decoder(inner, past, truth, vocabulary, empty=empty)
    return found


def decode(settings: Settings) -> Iterator[Comparison]:
    """C9: at 2k and 8k tokens of context."""
    vocabulary = our_config(settings).vocab_size
    theirs = with_truth(lambda: llama(settings))
    ours, peers = recurrent_models(settings)
    for context in (settings.size(2048, 64), settings.size(8192, 128)):
        torch.compiler.reset()  # graphs of other cases count toward the limit of graphs a function
        contenders = {
            name: decoder(model, filled_state(model, context), truth, vocabulary, base=True)
            for name, (model, truth) in ours.items()
        }
        contenders |= llama_decoders(settings, *theirs, context)
        for name, (model, truth) in peers.items():
            contenders[name] = decoder(model, model.filled(BATCH, context), truth, vocabulary)
        yield Comparison(
            f"one token of {BATCH} sequences, bfloat16, context {context}",
            contenders,
            lambda: (torch.randint(vocabulary, (BATCH, TOKENS)),),
        )


CASES = (Case("c9", "decoding with 23 million parameters", decode),)
