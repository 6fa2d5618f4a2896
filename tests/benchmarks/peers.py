"""Checkouts of other RetNets, named on the command line, as layers and models like ours.

Each was written against libraries of its time; small stand-ins replace the imports that are gone,
and positions and decays, which they compute in float32, are cast to the weights' dtype, since they
multiply with them. Nothing of theirs is changed otherwise, and nothing of theirs is kept here.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from retnet import RetNetConfig
from tests.benchmarks.peer_modules import (
    Calling,
    CastPositions,
    Recurrent,
    TorchScaleLayer,
    syncdoth_step,
    torchscale_operator,
    torchscale_step,
)

CHUNK = 512
"The published chunk size of the chunkwise form."
Layers = dict[str, nn.Module]
Models = dict[str, Callable[[], nn.Module]]
Operators = dict[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Peer:
    """What a checkout offers."""

    models: Callable[[RetNetConfig], Models]
    "Of our config: by name, what builds a model of its sizes, token ids [B, T] to logits."
    layers: Callable[[RetNetConfig, dict[str, Tensor], int, torch.dtype], Layers]
    "Of our config, our layer's weights, T and dtype: by name, layers x [1, T, D] -> same."
    decoders: Callable[[RetNetConfig], Models] = lambda config: {}
    "Of our config: by name, what builds a `Recurrent` model of its sizes."
    operators: Callable[[RetNetConfig, int, int, torch.dtype], Operators] = lambda *args: {}
    "Of our config, T, chunk size and dtype: by name, retention alone, up to a positive factor for "
    "each token and head: q, k [1, T, H, K], v [1, T, H, V], log_decay [H] -> as many as v."


def open_peers(named: list[str]) -> dict[str, Peer]:
    """Peers from words like `torchscale=/path/to/checkout`; ValueError for what is not there."""
    opened = {}
    for word in named:
        name, _, path = word.partition("=")
        if name not in OPEN:
            raise ValueError(f"--peer {word}: needed one of {', '.join(OPEN)}, then =/path")
        needed = Path(path).expanduser() / PACKAGES[name]
        if not needed.is_dir():
            raise ValueError(f"--peer {word}: {needed} is no folder; needed a checkout of {name}")
        opened[name] = OPEN[name](needed)
    return opened


@contextmanager
def stand_ins(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules of these names and contents can be imported, as long as it lasts."""
    for name, contents in modules.items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(contents)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def import_package(folder: Path, name: str) -> ModuleType:
    """The package in `folder` under a name of its own: one of them is called like ours."""
    where = [str(folder)]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=where
    )
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def unused(*args: Any, **kwargs: Any) -> Any:
    """Stands for what a checkout imports and no benchmark calls."""
    raise AssertionError("a benchmark called what was only there to be imported")


# Stochastic depth and activation checkpointing, both of which are off here.
TIMM = {
    "timm": {},
    "timm.models": {},
    "timm.models.layers": {"drop_path": unused},
}
FAIRSCALE = {"fairscale": {}, "fairscale.nn": {"checkpoint_wrapper": unused, "wrap": unused}}


def open_torchscale(folder: Path) -> Peer:
    """microsoft/torchscale."""
    import_package(folder, "torchscale")
    with stand_ins(TIMM | FAIRSCALE):
        config_class = importlib.import_module("torchscale.architecture.config").RetNetConfig
        theirs = importlib.import_module("torchscale.architecture.retnet")

    def translate(config: RetNetConfig, chunkwise: bool, chunk: int = CHUNK) -> Any:
        return config_class(
            **published_sizes(config),
            vocab_size=config.vocab_size,
            chunkwise_recurrent=chunkwise,
            recurrent_chunk_size=chunk,
        )

    def make(args: Any, config: RetNetConfig) -> nn.Module:
        sizes = config.hidden_size, config.value_dim, config.num_heads
        return theirs.MultiScaleRetention(args, *sizes)

    def build(config: RetNetConfig, chunkwise: bool) -> Calling:
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        decoder = theirs.RetNetDecoder(translate(config, chunkwise), embedding)
        decoder.retnet_rel_pos = CastPositions(decoder.retnet_rel_pos, embedding.weight)
        return Calling(decoder, lambda decoder, ids: decoder(ids)[0])

    def layers(
        config: RetNetConfig, weights: dict[str, Tensor], time: int, dtype: torch.dtype
    ) -> Layers:
        found = {}
        for name, chunkwise in (("parallel", False), (f"chunk {CHUNK}", True)):
            args = translate(config, chunkwise)
            retention = make(args, config)
            retention.load_state_dict(weights)
            positions = theirs.RetNetRelPos(args)
            layer = TorchScaleLayer(retention.to(dtype), positions, chunkwise)
            found[f"torchscale, {name}"] = layer
        return found

    def operators(config: RetNetConfig, time: int, chunk: int, dtype: torch.dtype) -> Operators:
        found = {}
        for name, chunkwise in (("parallel", False), (f"chunk {chunk}", True)):
            args = translate(config, chunkwise, chunk)
            found[f"torchscale, {name}"] = torchscale_operator(
                make(args, config), theirs.RetNetRelPos(args), time, chunkwise, dtype
            )
        return found

    return Peer(
        lambda config: {
            "torchscale, parallel": lambda: build(config, False),
            f"torchscale, chunk {CHUNK}": lambda: build(config, True),
        },
        layers,
        lambda config: {
            "torchscale, recurrent": lambda: Recurrent(build(config, False), torchscale_step, dict)
        },
        operators,
    )


def open_syncdoth(folder: Path) -> Peer:
    """syncdoth/RetNet."""
    import_package(folder, "syncdoth_retnet")
    # gone from transformers; sampling alone uses it
    transformers.top_k_top_p_filtering = unused
    with stand_ins(TIMM):
        config_class = importlib.import_module("syncdoth_retnet.configuration_retnet").RetNetConfig
        theirs = importlib.import_module("syncdoth_retnet.modeling_retnet")
    del transformers.top_k_top_p_filtering

    def build(config: RetNetConfig, form: str) -> Calling:
        model = theirs.RetNetForCausalLM(
            config_class(
                **published_sizes(config),
                vocab_size=config.vocab_size,
                forward_impl=form,
                recurrent_chunk_size=CHUNK,
            )
        )
        decoder = model.model
        decoder.retnet_rel_pos = CastPositions(decoder.retnet_rel_pos, decoder.embed_tokens.weight)
        return Calling(model, lambda m, ids: m(ids, use_cache=False, return_dict=True).logits)

    names = {"syncdoth, parallel": "parallel", f"syncdoth, chunk {CHUNK}": "chunkwise"}
    return Peer(
        lambda config: {
            name: lambda form=form: build(config, form) for name, form in names.items()
        },
        lambda *args: {},  # torchscale's again
        lambda config: {
            "syncdoth, recurrent": lambda: Recurrent(
                build(config, "parallel"), syncdoth_step, lambda: None
            )
        },
    )


def open_yar(folder: Path) -> Peer:
    """fkodom/yet-another-retnet: values as wide as keys, a plain feed-forward; as many weights."""
    import_package(folder, "yet_another_retnet")
    theirs = importlib.import_module("yet_another_retnet.retnet")
    retention = importlib.import_module("yet_another_retnet.retention")
    parallel = retention.retention_parallel
    # Its float32 rotation makes float32 queries and keys, which do not go with bfloat16 values.
    retention.retention_parallel = lambda q, k, v, **asked: parallel(
        q.to(v.dtype), k.to(v.dtype), v, **asked
    )

    def build(config: RetNetConfig) -> nn.Module:
        width = config.hidden_size
        ours = 2 * width**2 + 3 * width * (config.value_dim + config.intermediate_size)
        model = theirs.RetNet(
            config.vocab_size,
            d_model=width,
            nhead=config.num_heads,
            num_layers=config.num_layers,
            dropout=0.0,
            dim_feedforward=(ours - 5 * width**2) // (2 * width),
        )
        return Calling(model, lambda model, ids: model.forward_parallel(ids))

    return Peer(
        lambda config: {"yet-another-retnet, parallel": lambda: build(config)}, lambda *args: {}
    )


def published_sizes(config: RetNetConfig) -> dict[str, Any]:
    """The fields that torchscale's and syncdoth's configs share with ours."""
    names = (
        "decoder_embed_dim",
        "decoder_value_embed_dim",
        "decoder_ffn_embed_dim",
        "decoder_layers",
        "decoder_retention_heads",
        "activation_fn",
        "no_scale_embedding",
        "layernorm_embedding",
    )
    return {name: getattr(config, name) for name in names}


OPEN = {"torchscale": open_torchscale, "syncdoth": open_syncdoth, "yar": open_yar}
PACKAGES = {"torchscale": "torchscale", "syncdoth": "retnet", "yar": "yet_another_retnet"}
"Where in a checkout the package is."
