"""Published checkpoints: where their files are, what they hold, and what it is called in our names.

Files are read without running anything that they contain. Not here: configs (`published.py`) and
building a model (`pretrained.py`, `convert.py`).
"""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from retnet.models.configuration import RetentionConfig
from retnet.models.rotary import log_decays

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OUR_NAMES = (
    (r"^decoder\.", ""),  # fairseq
    (r"^output_projection\.", "lm_head."),  # torchscale
    (r"^(?!model\.|lm_head\.|score\.)", "model."),
    (r"^model\.norm_embedding\.", "model.layernorm_embedding."),
    (r"^model\.retnet_rel_pos\.", "model.rel_pos."),
    (r"^model\.embeddings\.", "model.embed_tokens."),  # flash-linear-attention, to the end
    (r"^model\.norm\.", "model.layer_norm."),
    (r"\.attn_norm\.", ".retention_layer_norm."),
    (r"\.mlp_norm\.", ".final_layer_norm."),
    (r"\.attn\.(g_norm_swish_gate|g_norm)\.", ".retention.group_norm."),
    (r"\.attn\.o_proj\.", ".retention.out_proj."),
    (r"\.attn\.([qkvg]_proj)\.", r".retention.\1."),
    (r"\.mlp\.gate_proj\.", ".ffn.fc1."),
    (r"\.mlp\.up_proj\.", ".ffn.gate."),
    (r"\.mlp\.down_proj\.", ".ffn.fc2."),
)
"What a published name has -> what ours has, one after the other."
NORM_NAMES = (("layernorm_embedding", "rms_norm_embedding"), ("layer_norm", "rms_norm"))
"RetNet's and NucleusX's words; each was published under the other's too."
COMPUTED = re.compile(r"^model\.(version|rel_pos\.(angle|decay))$")
"What our models compute, or never had."


def find_files(source: str | Path, variant: str | None = None, **hub: Any) -> list[Path]:
    """The weight files of a folder or a Hugging Face repository, shards in order; [] if none.

    variant: "fp16" for model.fp16.safetensors; hub: what transformers' `cached_file` takes
    (revision, token, ...). A local folder does not touch the network.
    """
    for name in FILES:
        if variant is not None:
            name = f".{variant}.".join(name.rsplit(".", 1))
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if found is None:
            continue
        if not name.endswith(".json"):
            return [Path(found)]
        shards = sorted(set(json.loads(Path(found).read_text())["weight_map"].values()))
        return [Path(cached_file(source, shard, **hub)) for shard in shards]
    return []


def read_names(file: Path) -> list[str]:
    """The names of a file's tensors; of a safetensors file only the header is read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    return list(read_pickle(file)[0])


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of `files` on the CPU, by the names they have there."""
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                weights |= {name: tensors.get_tensor(name) for name in tensors.keys()}
        else:
            weights |= read_pickle(file)[0]
    return weights


def read_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A torch checkpoint's tensors, and the arguments of its model where fairseq stored them.

    Nothing but tensors, plain values and `argparse.Namespace` is unpickled; ValueError for more.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(
                file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
            )
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = asked[1] if asked else "something that is no tensor"
        raise ValueError(
            f"{file} wants to run {what}, which was not done; needed tensors and plain values: "
            "where you trust the file, save its weights alone, as safetensors"
        ) from error
    weights = held.get("model", held) if isinstance(held, dict) else held
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{file} holds no state dict; needed tensors by name, or these in 'model'")
    if weights is held:
        return weights, {}
    arguments = held.get("args") or (held.get("cfg") or {}).get("model") or {}
    return weights, vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments


def our_name(name: str, model_type: str) -> str:
    """A published weight's name in ours; one of ours stays as it is."""
    for pattern, ours in OUR_NAMES:
        name = re.sub(pattern, ours, name)
    for words in NORM_NAMES:
        right, wrong = words if model_type == "retnet" else words[::-1]
        name = re.sub(rf"(?<=[._]){wrong}\.", f"{right}.", name)
    return name


def are_foreign(names: Collection[str], model_type: str) -> bool:
    """Whether `translate_weights` is needed. Our bare model, saved by itself, needs none."""
    heads = ("model.", "lm_head.", "score.", "decoder.", "output_projection.")
    prefix = "" if any(name.startswith(heads) for name in names) else "model."
    ours = {name: our_name(name, model_type) for name in names}
    return any(COMPUTED.match(new) or new != prefix + name for name, new in ours.items())


def translate_weights(weights: dict[str, Tensor], config: RetentionConfig) -> dict[str, Tensor]:
    """A published state dict under the names of our language model or classifier.

    config: ours, of the same model, against which a stored decay buffer is checked. Fused gates are
    split; computed buffers are dropped, and so is a head that is tied to the embedding. Raises
    ValueError where the weights contradict the config or one another.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        new = our_name(name, config.model_type)
        if new in ours:
            raise ValueError(f"{name} and another weight are both {new} in our names")
        ours[new] = tensor
    if "model.rel_pos.decay" in ours:
        check_decay(ours["model.rel_pos.decay"], config)
    ours = {name: tensor for name, tensor in ours.items() if not COMPUTED.match(name)}
    for name in [name for name in ours if name.endswith(".ffn.fc1.weight")]:
        gate = name.replace(".fc1.", ".gate.")
        if config.use_glu and gate not in ours and len(ours[name]) == 2 * config.intermediate_size:
            # flash-linear-attention before 2025-02-09: both in one matrix, the activated one first
            ours[name], ours[gate] = ours[name].chunk(2)
    if config.tie_word_embeddings and "lm_head.weight" in ours:
        if not ours.pop("lm_head.weight").equal(ours["model.embed_tokens.weight"]):
            raise ValueError(
                "tie_word_embeddings=True, but the checkpoint's output head differs from its "
                "embedding; needed tie_word_embeddings=False"
            )
    return ours


def check_decay(stored: Tensor, config: RetentionConfig) -> None:
    """Raises ValueError where log decays [H] stored in a checkpoint are not the config's."""
    heads, lm = len(stored), config.use_lm_decay
    if heads != config.num_heads:
        raise ValueError(
            f"the checkpoint stores decays of {heads} heads and its config says "
            f"decoder_retention_heads={config.num_heads}; needed {heads}"
        )
    if decay_families(stored) and lm not in decay_families(stored):
        raise ValueError(
            f"the checkpoint's stored decays contradict use_lm_decay={lm}; needed "
            f"use_lm_decay={not lm}"
        )
    if not decay_families(stored):
        raise ValueError(
            f"the checkpoint's stored decays belong to neither value of use_lm_decay: log decays "
            f"{[round(value, 5) for value in stored.tolist()]}"
        )


def decay_families(stored: Tensor) -> list[bool]:
    """The values of `use_lm_decay` that give these log decays [H]."""
    # two percent of the largest: half precision copies pass, the other family does not
    return [
        lm
        for lm in (False, True)
        if (stored.double() - log_decays(len(stored), lm)).abs().max() < 0.02 / 32
    ]


def check_fit(
    weights: dict[str, Tensor], expected: dict[str, Tensor], tied: bool, any_shape: bool = False
) -> None:
    """Raises ValueError naming a weight that is missing, left over or, unless `any_shape`, of
    another shape.

    weights: of the checkpoint, translated; expected: of the model that takes them. A classifier's
    head may be new, a head may stay unused, and a tied one is no weight.
    """
    missing = expected.keys() - weights.keys() - {"score.weight", "lm_head.weight" if tied else ""}
    left = weights.keys() - expected.keys() - {"score.weight", "lm_head.weight"}
    for verb, wrong in (("lacks", sorted(missing)), ("has", sorted(left))):
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise ValueError(
                f"the checkpoint {verb} {wrong[0]}{more}, against its config; needed a config "
                "whose use_glu, subln, norm, retention_bias, layernorm_embedding, deepnorm, "
                "head_norm_affine, tie_word_embeddings and decoder_layers are the checkpoint's"
            )
    for name in sorted(weights.keys() & expected.keys()):
        shape, needed = list(weights[name].shape), list(expected[name].shape)
        if shape != needed and not any_shape:
            raise ValueError(
                f"{name} has shape {shape} in the checkpoint and {needed} by its config; needed a "
                "config of the checkpoint's sizes"
            )
