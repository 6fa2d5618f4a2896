"""G14: on a GPU, decoding. First the recurrent step alone, at batches of 1 to 512; then a model of
1.3 billion parameters at a context of 8,192 tokens beside transformers' Llama of as many with its
static cache, compiled.

The floor of a step is its bytes: the states, read and written, and for a model the weights, or
Llama's caches and weights, read, at the speed of a copy. Steps are also replayed as CUDA graphs:
launches would take longer than what they do. Not here: decoding on a CPU (`decoding.py`).
"""

import gc
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from retnet.kernels import Backend, reference
from tests.benchmarks.goals import Goal
from tests.benchmarks.gpu import DEVICE, peer
from tests.benchmarks.gpu_workloads import DTYPE, OURS, PLAIN, WIDE, Heads, chosen, decays
from tests.benchmarks.measure import (
    MOST_PAIRS,
    Case,
    Comparison,
    Contender,
    Settings,
    relative_error,
)
from tests.benchmarks.roofline import Work, token

BATCHES, MODEL_BATCHES = (1, 8, 64, 512), (1, 8, 64)
CONTEXT, PROMPT, TOKENS = 8192, 64, 8
"Tokens of the past, of the prompt that is checked, and of a turn."
LAYERS, STATE_BYTES = 24, 2**30
"States that a turn goes over, so that no cache holds them: a model's, or as many as fit."
GRAPH = ", as a graph"
FASTER = {1: 1.3, 8: 3.0, 64: 6.0}
"Than Llama, by batch: what is to be reached."


def as_graph(step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What replays `step` as a CUDA graph, and what `step` returned, which every replay rewrites.
    `step` runs a few times before, on another stream, as a capture wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    return graph.replay, found


class Step:
    """The recurrent step of as many layers, each with a state of its own."""

    def __init__(self, operator: Callable, heads: Heads, batch: int, layers: int) -> None:
        """operator: q, k, v, state -> o and the new state, perhaps in the old one's memory."""
        shape = batch, 1, heads.number
        self.given = [
            torch.zeros(*shape, width, device=DEVICE, dtype=DTYPE)
            for width in (heads.key, heads.key, heads.value)
        ]
        widths = heads.key, heads.value
        self.states = torch.randn(layers, batch, heads.number, *widths, device=DEVICE).unbind()
        self.operator, self.before, self.found = operator, self.states[-1], ()
        self.replay: Callable[[], None] | None = None

    def prepare(self, *inputs: Tensor) -> None:
        """Fresh inputs in the place where a graph reads them."""
        for held, x in zip(self.given, inputs, strict=True):
            held.copy_(x)
        self.before = self.states[-1].clone()

    def all_layers(self) -> tuple[Tensor, Tensor]:
        """o and the state of the last layer."""
        for state in self.states:
            found = self.operator(*self.given, state)
        return found

    @torch.no_grad()
    def run(self, *_: Tensor) -> None:
        """At once."""
        self.found = self.all_layers()

    @torch.no_grad()
    def run_graph(self, *_: Tensor) -> None:
        """As a graph, made at the first call; what it is made with moves the states on."""
        if self.replay is None:
            self.replay, self.found = as_graph(self.all_layers)
            self.states[-1].copy_(self.before)
        self.replay()

    def check(self, log_decay: Tensor, inputs: tuple, outputs: None) -> float:
        """The last layer's o and state against float64."""
        wide = [x.double() for x in (*inputs, log_decay, self.before)]
        return relative_error(self.found, reference.retention_recurrent(*wide))


def steps(settings: Settings) -> Iterator[Comparison]:
    """The recurrent step alone."""
    heads = WIDE.toy() if settings.quick else WIDE
    log_decay = decays(heads)

    def recurrent(backend: Backend) -> Callable:
        retain = chosen(backend).retention_recurrent
        return lambda q, k, v, state: retain(q, k, v, log_decay, state, in_place=True)

    operators = {OURS: recurrent(Backend.triton), PLAIN: recurrent(Backend.torch)}
    if find_spec("fla") is not None:
        operators["fla"] = lambda q, k, v, state: peer(
            "fla.ops.retention", "fused_recurrent_retention"
        )(q, k, v, scale=1.0, initial_state=state, output_final_state=True)
    for batch in (2,) if settings.quick else BATCHES:
        work = token(heads.key, heads.value) * (batch * heads.number)
        layers = settings.size(max(1, min(LAYERS, int(STATE_BYTES // work.bytes * 2))), 2)

        def draw(batch: int = batch) -> tuple[Tensor, ...]:
            widths = heads.key, heads.key, heads.value
            shape = batch, 1, heads.number
            return tuple(torch.randn(*shape, w, device=DEVICE).to(DTYPE) for w in widths)

        contenders = {}
        for name, operator in operators.items():
            for graphed in (False, True) if DEVICE.type == "cuda" else (False,):
                step = Step(operator, heads, batch, layers)
                contenders[name + GRAPH * graphed] = Contender(
                    step.run_graph if graphed else step.run,
                    name == OURS,
                    partial(step.check, log_decay),
                    step.prepare,
                    layers,
                    phases=(work,),
                )
        goal = Goal(OURS + GRAPH, times={f"{PLAIN}{GRAPH}|fla": 1.0}, of_floor=0.7)
        title = f"one token, batch {batch}, {heads.number} heads of {heads.key} / {heads.value}"
        yield Comparison(
            title,
            contenders,
            draw,
            "copy",
            device=DEVICE.type,
            standard=PLAIN,
            goals=(goal,) if DEVICE.type == "cuda" else (),
        )


class Decoder:
    """A model that decodes one token of each sequence a step, from a past that stays where it is.

    `past` is what a prompt left; the step writes over it."""

    def __init__(
        self, model: nn.Module, past: Any, error: float, batch: int, work: Work, graphed: bool
    ) -> None:
        self.model, self.past, self.error, self.work = model, past, error, work
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=DEVICE)
        self.graphed, self.replay = graphed, None

    def step(self) -> Tensor:
        """Logits [B, 1, vocabulary] after the token."""
        asked = {"past_key_values": self.past, "use_cache": True}
        return self.model(input_ids=self.token, **asked).logits

    @torch.no_grad()
    def run(self, tokens: Tensor) -> None:
        """tokens [B, n], one after the other."""
        if self.graphed and self.replay is None:
            self.replay, _ = as_graph(self.step)
        for column in tokens.T.unsqueeze(-1):
            self.token.copy_(column)
            if self.replay:
                self.replay()
            else:
                torch.compiler.cudagraph_mark_step_begin()  # nobody keeps the last step's logits
                self.step()

    def contender(self, base: bool, tokens: int) -> Contender:
        def check(inputs: tuple, outputs: None) -> float:
            return self.error

        return Contender(self.run, base, check, parts=tokens, phases=(self.work,))


def error_of(model: nn.Module, begin: Callable[[], Any], prompt: int) -> float:
    """Of one step after a prompt of two sequences, against the model in float64 at once."""
    ids = torch.randint(model.config.vocab_size, (2, prompt), device=DEVICE)
    with torch.no_grad():
        past = model(input_ids=ids[:, :-1], past_key_values=begin(), use_cache=True)
        found = model(input_ids=ids[:, -1:], past_key_values=past.past_key_values, use_cache=True)
        truth = deepcopy(model).double()
        right = truth(input_ids=ids, use_cache=False).logits[:, -1:]
    return relative_error([found.logits], [right])


def compiled(model: nn.Module) -> nn.Module:
    """With the same weights, compiled whole, its steps replayed as graphs."""
    return torch.compile(model, dynamic=False, mode="reduce-overhead")


def weights_work(model: nn.Module, batch: int, past_bytes: float) -> Work:
    """Of a step: every weight but the embedding's is read once for all sequences."""
    embedding = model.get_input_embeddings().weight
    count = sum(p.numel() for p in model.parameters()) - embedding.numel()
    return Work(2.0 * count * batch, count * DTYPE.itemsize + past_bytes)


def our_decoders(
    settings: Settings, model: nn.Module, batch: int, error: float
) -> dict[str, Decoder]:
    """Ours with a fixed state, of which a replayed step takes no new memory."""
    config, cache = model.config, import_module("retnet.models.state").RetentionCache

    def fixed() -> Any:
        begun = cache.empty(config, batch, DEVICE)
        begun.position.fill_(CONTEXT)
        begun.length = CONTEXT
        return begun.fixed()

    state = token(config.key_dim, config.value_dim // config.num_heads)
    states = state.bytes * batch * config.num_heads * config.num_layers
    work = weights_work(model, batch, states)
    graphed = DEVICE.type == "cuda"
    name = f"ours{GRAPH}" if graphed else "ours"
    found = {name: Decoder(model, fixed(), error, batch, work, graphed)}
    if not settings.quick:
        other = compiled(model)
        found["ours, compiled"] = Decoder(other, fixed(), error, batch, work, False)
    return found


def static_cache(settings: Settings, model: nn.Module) -> Any:
    """Llama's, for the context and all turns."""
    from transformers import StaticCache  # may be missing where the other cases run

    most = settings.size(CONTEXT, PROMPT) + TOKENS * (MOST_PAIRS + 2)
    return StaticCache(model.config, max_cache_len=most)


def llama_decoder(settings: Settings, model: nn.Module, batch: int, error: float) -> Decoder:
    """Llama with a static cache that holds the context."""
    config, context = model.config, settings.size(CONTEXT, PROMPT)
    past = static_cache(settings, model)
    shape = batch, config.num_key_value_heads, context, config.head_dim
    with torch.no_grad():
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape, device=DEVICE, dtype=DTYPE) for _ in range(2))
            past.update(keys, values, layer)
    elements = 2 * batch * context * config.num_key_value_heads * config.head_dim
    read = elements * config.num_hidden_layers * DTYPE.itemsize
    work = weights_work(model, batch, read)
    made = model if settings.quick else compiled(model)
    return Decoder(made, past, error, batch, work, False)


def models(settings: Settings) -> Iterator[Comparison]:
    """A model of 1.3B parameters, beside Llama."""
    presets = import_module("tests.benchmarks.gpu_presets")  # transformers may be missing
    ours = presets.our_1b3(settings).to(DEVICE, DTYPE).eval()
    llama = presets.llama_1b3(settings).to(DEVICE, DTYPE).eval()
    vocabulary, prompt = ours.config.vocab_size, settings.size(PROMPT, 5)
    tokens = settings.size(TOKENS, 1)
    error = error_of(ours, lambda: None, prompt)
    llama_error = error_of(llama, partial(static_cache, settings, llama), prompt)
    for batch in (2,) if settings.quick else MODEL_BATCHES:
        torch.compiler.reset()
        decoders = our_decoders(settings, ours, batch, error)
        decoders["Llama, static cache, compiled"] = llama_decoder(
            settings, llama, batch, llama_error
        )
        goals = ()
        if DEVICE.type == "cuda":
            goals = (Goal(f"ours{GRAPH}", times={"Llama": FASTER.get(batch, 1.0)}, of_floor=0.7),)
        yield Comparison(
            f"one token of {batch} sequences, context {settings.size(CONTEXT, PROMPT):,}",
            {name: decoder.contender(name[0] == "o", tokens) for name, decoder in decoders.items()},
            lambda batch=batch: (torch.randint(vocabulary, (batch, tokens), device=DEVICE),),
            "copy",
            device=DEVICE.type,
            goals=goals,
        )
        del decoders
        gc.collect()


def decode(settings: Settings) -> Iterator[Comparison]:
    """G14: the step alone, then models."""
    yield from steps(settings)
    yield from models(settings)


CASES = (
    Case("g14", "decoding: the recurrent step, and 1.3 billion parameters", decode, minutes=4),
)
