"""`python -m retnet.models.convert SRC DST [KEY=VALUE ...]`: a published checkpoint becomes a
Hugging Face folder in our names.

SRC is a folder with config.json and weights, or one checkpoint file; DST a new folder. KEY=VALUE
sets fields of the config. Not here: what the formats are (`published.py`, `weights.py`).
"""

import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from retnet.models.configuration import NucleusXConfig, RetentionConfig, RetNetConfig
from retnet.models.nucleus_x import NucleusXForCausalLM, NucleusXForSequenceClassification
from retnet.models.published import FROM_FAIRSEQ, OURS, find_format
from retnet.models.retnet import RetNetForCausalLM, RetNetForSequenceClassification
from retnet.models.weights import (
    decay_families,
    find_files,
    our_name,
    read_pickle,
    read_weights,
)

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)


def convert(
    source: Path,
    target: Path,
    overrides: dict[str, Any] | None = None,
    config_file: Path | None = None,
    dtype: str | None = None,
) -> None:
    """Writes `target` as `from_pretrained(source).save_pretrained(target)` would.

    overrides: fields of the config, in any published name. config_file: the config where the source
    has none, or another than its own. dtype: of the written tensors, by default their own. Raises
    ValueError where the checkpoint cannot be ours and OSError where files are missing or in the
    way.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OSError(f"{target} is there already and not empty; choose a new folder")
    folder = source if source.is_dir() else source.parent
    files = find_files(source) if source.is_dir() else [source]
    if not files or not files[0].exists():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in CHECKPOINTS)
        hint = f"; give the file itself: {source / others[0]}" if source.is_dir() and others else ""
        raise OSError(
            f"{source} holds no model.safetensors and no pytorch_model.bin, and is none{hint}"
        )
    weights = read_weights(files)
    config, form = read_config(source, weights, config_file, overrides or {})
    tensor = next(w for w in weights.values() if w.is_floating_point())
    dtype = dtype or (overrides or {}).get("dtype") or str(tensor.dtype).removeprefix("torch.")
    nucleus_x, classifier = isinstance(config, NucleusXConfig), "score.weight" in weights
    model_class = {
        (False, False): RetNetForCausalLM,
        (False, True): RetNetForSequenceClassification,
        (True, False): NucleusXForCausalLM,
        (True, True): NucleusXForSequenceClassification,
    }[nucleus_x, classifier]
    settings = {}
    if (folder / "generation_config.json").is_file() and not classifier:
        settings["generation_config"] = GenerationConfig.from_pretrained(folder)
    model = model_class.from_published(weights, config, dtype=dtype, **settings)
    model.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copy(folder / name, target)
    size = sum(parameter.numel() for parameter in model.parameters())
    log.info(
        "read %s (%s), wrote %s: %s parameters in %s", source, form, target, f"{size:,}", dtype
    )


def read_config(
    source: Path, weights: dict[str, Tensor], config_file: Path | None, overrides: dict[str, Any]
) -> tuple[RetentionConfig, str]:
    """The config of a checkpoint and the name of its format: from `config_file`, from config.json
    beside the weights, or from what the file itself says and the tensors show."""
    beside = (source if source.is_dir() else source.parent) / "config.json"
    stored: dict[str, Any] = {}
    if source.is_file() and source.suffix != ".safetensors":
        stored = read_pickle(source)[1]
    if config_file is None and beside.is_file() and not stored:
        config_file = beside
    if config_file is not None:
        given = json.loads(config_file.read_text())
    else:
        said = {key: stored[key] for key in FROM_FAIRSEQ & stored.keys() if stored[key] is not None}
        given = RetNetConfig.override(infer_fields(weights), said)
    nucleus_x = given.get("model_type") == NucleusXConfig.model_type
    config_class = NucleusXConfig if nucleus_x else RetNetConfig
    given = config_class.override(given, overrides)
    form = find_format(given, config_class.model_type).name
    if config_file is None:
        ask_for_the_rest(source, given)
    if form == "torchscale" and given.get("vocab_size") in (None, -1):  # its caller's
        for name in weights:
            if our_name(name, "retnet") == "model.embed_tokens.weight":
                given["vocab_size"] = len(weights[name])
    config = config_class.from_dict(given)
    if form != OURS.name and config.retention_bias and "groupnorm_eps" not in given:
        if config.layernorm_eps != 1e-6:
            log.warning(
                "%s does not say which eps its head norm had: layernorm_eps=%g is taken; give "
                "groupnorm_eps=1e-6 for weights trained between 2023-08-02 and 2023-09-27",
                source,
                config.layernorm_eps,
            )
    return config, form


def ask_for_the_rest(source: Path, given: dict[str, Any]) -> None:
    """Raises ValueError, or warns, for what neither tensors nor arguments in `given` tell."""
    if "decoder_retention_heads" not in given:
        raise ValueError(
            f"{source} does not say how many heads it has and stores no decays; give "
            "decoder_retention_heads=N or --config FILE"
        )
    if not given["decoder_normalize_before"] and "deepnorm" not in given:
        raise ValueError(
            f"{source} normalizes after every branch and does not say whether it scales the "
            "residual; give deepnorm=true or deepnorm=false"
        )
    for key in sorted({"activation_fn", "no_scale_embedding", "layernorm_eps"} - given.keys()):
        log.warning("%s says nothing of %s: torchscale's own default is taken", source, key)


def infer_fields(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the tensors of a torchscale checkpoint show of its config, as torchscale's config.

    Heads show only in a stored decay buffer; activation, embedding scale and eps in nothing.
    """
    if not any(name.startswith(("output_projection.", "decoder.", "layers.")) for name in weights):
        raise ValueError("these are no torchscale weights; give their config with --config FILE")
    ours = {our_name(name, "retnet"): tensor for name, tensor in weights.items()}
    first = "model.layers.0."
    needed = ("retention.v_proj.weight", "ffn.fc1.weight")
    for name in ("model.embed_tokens.weight", *(first + name for name in needed)):
        if name not in ours:
            raise ValueError(f"the checkpoint lacks {name}: needed a language model's weights")
    embedding = ours["model.embed_tokens.weight"]
    head = ours.get("lm_head.weight")
    plain = first + "retention_layer_norm.bias" in ours
    fields = dict(
        chunkwise_recurrent=False,
        vocab_size=len(embedding),
        decoder_embed_dim=embedding.shape[1],
        decoder_layers=len({name.split(".")[2] for name in ours if ".layers." in name}),
        decoder_value_embed_dim=len(ours[first + needed[0]]),
        decoder_ffn_embed_dim=len(ours[first + needed[1]]),
        decoder_normalize_before="model.layer_norm.weight" in ours,
        layernorm_embedding="model.layernorm_embedding.weight" in ours,
        use_glu=first + "ffn.gate.weight" in ours,
        subln=first + "ffn.ffn_layernorm.weight" in ours,
        norm="layer_norm" if plain else "rms_norm",
        retention_bias=first + "retention.q_proj.bias" in ours,
        tie_word_embeddings=head is None or head.equal(embedding),
    )
    if "model.rel_pos.decay" in ours:
        decay = ours["model.rel_pos.decay"]
        fields |= dict(
            decoder_retention_heads=len(decay), use_lm_decay=True in decay_families(decay)[:1]
        )
    return fields


def parse_override(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as JSON or else as the text it is."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: needed KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m retnet.models.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument("fields", nargs="*", type=parse_override, metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path, help="a config.json, where SRC has none of its own")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written tensors")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        convert(given.source, given.target, dict(given.fields), given.config, given.dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")


if __name__ == "__main__":
    main()
