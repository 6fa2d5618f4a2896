"""The names that a command line may say: every key with its type and meaning, every group with its
options, and for a name that there is not the one that was probably meant. Not here: values.
"""

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from configs.schema import Config
from launch.sweep.config import SweepConfig

FOLDER = Path(__file__).parent
LAUNCHER = "hydra.launcher"
DEVICES = {
    *("gpus", "num_gpus", "n_gpus", "ngpus", "devices", "num_devices", "accelerator"),
    *("num_nodes", "nnodes", "nodes", "nproc_per_node", "world_size"),
}
RESUMES = {"resume", "resume_from", "resume_from_checkpoint", "load_step", "auto_resume"}
ELSEWHERE = {
    # what people type who come from another framework, or in a hurry -> ours
    "lr": "optimizer.learning_rate",
    "max_lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "clip_grad": "optimizer.gradient_clipping",
    "grad_clip": "optimizer.gradient_clipping",
    "max_norm": "optimizer.gradient_clipping",
    "max_grad_norm": "optimizer.gradient_clipping",
    "betas": "optimizer.beta1",
    "warmup": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_steps",
    "min_lr": "schedule.final_fraction",
    "batch_size": "global_batch_size",
    "batch": "global_batch_size",
    "batchsize": "global_batch_size",
    "bs": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "local_batch_size": "micro_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "accumulate_grad_batches": "micro_batch_size",
    "grad_accum": "micro_batch_size",
    "tokens_per_step": "global_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "seq_len": "sequence_length",
    "seq_length": "sequence_length",
    "context_length": "sequence_length",
    "max_seq_len": "sequence_length",
    "max_seq_length": "sequence_length",
    "max_length": "sequence_length",
    "block_size": "sequence_length",
    "max_steps": "steps",
    "num_steps": "steps",
    "train_iters": "steps",
    "iterations": "steps",
    "total_steps": "steps",
    "epochs": "steps",
    "max_epochs": "steps",
    "num_epochs": "steps",
    "num_train_epochs": "steps",
    "d_model": "model.hidden_size",
    "n_embd": "model.hidden_size",
    "dim": "model.hidden_size",
    "n_layers": "model.num_layers",
    "n_layer": "model.num_layers",
    "depth": "model.num_layers",
    "n_heads": "model.num_heads",
    "n_head": "model.num_heads",
    "head_dim": "model.num_heads",
    "key_dim": "model.num_heads",
    "ffn_dim": "model.intermediate_size",
    "vocab": "model.vocab_size",
    "weight_tying": "model.tie_word_embeddings",
    "precision": "engine.dtype",
    "mixed_precision": "engine.dtype",
    "bf16": "engine.dtype",
    "fp16": "engine.dtype",
    "zero": "engine.stage",
    "zero_stage": "engine.stage",
    "cpu_offload": "engine.offload_optimizer",
    "fsdp": "engine",
    "gradient_checkpointing": "engine.activation_checkpointing",
    "output_dir": "name",
    "save_dir": "name",
    "out_dir": "name",
    "run_name": "name",
    "dataset": "data.dataset",
    "save_steps": "save_every",
    "save_interval": "save_every",
    "checkpoint_interval": "save_every",
    "eval_steps": "evaluate_every",
    "eval_interval": "evaluate_every",
    "logging_steps": "log_every",
    "log_interval": "log_every",
    "log_freq": "log_every",
}


def config_groups() -> dict[str, set[str]]:
    """The groups below configs/ and the options of each."""
    return _groups(FOLDER)


@cache
def _groups(folder: Path) -> dict[str, set[str]]:
    return {
        group.name: {path.stem for path in group.glob("*.yaml")}
        for group in folder.iterdir()
        if group.is_dir() and any(group.glob("*.yaml"))
    }


def config_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a dataclass and of those it nests, with dots."""
    for name, kind in get_type_hints(schema).items():
        yield prefix + name
        if is_dataclass(kind):
            yield from config_keys(kind, f"{prefix}{name}.")


@cache
def key_types() -> dict[str, Any]:
    """{key with dots: its annotated type}, sections (model, data, ...) and the sweep launcher's
    keys (hydra.launcher.*) with them."""
    found: dict[str, Any] = {}

    def walk(schema: type, prefix: str) -> None:
        for name, kind in get_type_hints(schema).items():
            found[prefix + name] = kind
            if is_dataclass(kind):
                walk(kind, f"{prefix}{name}.")

    walk(Config, "")
    walk(SweepConfig, f"{LAUNCHER}.")
    return {key: kind for key, kind in found.items() if not key.rpartition(".")[2].startswith("_")}


@cache
def meaning(key: str) -> str:
    """The line under the field that `key` names, as one line; "" where it has none."""
    inside = key.removeprefix(f"{LAUNCHER}.")
    schema: Any = SweepConfig if inside != key else Config
    *sections, name = inside.split(".")
    for section in sections:
        schema = get_type_hints(schema)[section]
    return field_docs(schema).get(name, "")


@cache
def field_docs(schema: type) -> dict[str, str]:
    """{field: the string written under it} of a dataclass and its bases, as one line each."""
    docs: dict[str, str] = {}
    for base in schema.__mro__[-2:0:-1]:
        docs |= field_docs(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0].body
    for field, below in zip(body, body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and is_text:
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def unknown_key(word: str) -> str:
    """One sentence for a key or group that there is not, with what was probably meant."""
    groups, known = config_groups(), own_names()
    if word.startswith("hydra."):
        known = {key for key in key_types() if key.startswith(LAUNCHER)}
    if word in DEVICES:
        return (
            f"there is no key {word}: how many devices a run has is its launcher's to say, as "
            "deepspeed --num_gpus 8 train.py ..., and a plan's are plan.devices=8"
        )
    if word in RESUMES:
        return (
            f"there is no key {word}: the same command goes on where the run stopped, since name= "
            "decides the folder"
        )
    if option := option_of(word):
        return f"there is no key {word}: an option of a group is written {option}"
    if found := closest_key(word, known):
        return f"there is no key {word}; did you mean {found}?"
    group = closest(word.partition(".")[0], groups)
    rest = word.partition(".")[2]
    if rest and (inside := fields_of(group or "")):
        return f"there is no key {word}; {group} has {listed(inside)}"
    return f"there is no key {word}; see --help"


def option_of(word: str) -> str | None:
    """group=option for a word that runs the two together, or names an option alone."""
    groups = config_groups()
    if any(key.rpartition(".")[2] == word.rpartition(".")[2] for key in key_types()):
        return None
    word = word.replace("/", ".").removeprefix("configs.").removesuffix(".yaml")
    first, _, rest = word.partition(".")
    if not rest:
        found = [f"{name}={first}" for name in sorted(groups) if first in groups[name]]
        return found[0] if len(found) == 1 else None
    group = closest(first, groups)
    option = closest(rest, groups[group]) if group else None
    if option is None or (option != rest and closest(rest, fields_of(group))):
        return None
    return f"{group}={option}"


def own_names() -> set[str]:
    """Every key and group of ours, without those that Hydra knows."""
    return {key for key in key_types() if not key.startswith("hydra.")} | set(config_groups())


def fields_of(section: str) -> set[str]:
    """The keys of one section, without its name; none for a group that is no section."""
    kind = key_types().get(section)
    return {item.name for item in fields(kind)} if is_dataclass(kind) else set()


def closest_key(word: str, known: Collection[str]) -> str | None:
    """The key of `known` that `word` was probably meant to be: the same but for its case, above it
    (a key has no keys of its own), the same last part in another section, another framework's word,
    close in its letters, close within its section, or close in its last part."""
    small = word.lower().replace("-", "_")
    if small in known:
        return small
    sections = {key.rpartition(".")[0] for key in known if "." in key}
    known = {key for key in known if key not in sections or not small.startswith(f"{key}.")}
    if above := [key for key in known if small.startswith(f"{key}.")]:
        return above[0]
    section, _, last = small.rpartition(".")
    by_last = [key for key in sorted(known) if key.rpartition(".")[2] == last]
    if by_last:  # another section's key, or the section left out or misspelt
        around = [key.rpartition(".")[0] for key in by_last if "." in key]
        if last in known and not get_close_matches(section, around, n=1):
            return last
        return max(by_last, key=lambda key: SequenceMatcher(None, key, small).ratio())
    if elsewhere := ELSEWHERE.get(last):
        return elsewhere
    if close := get_close_matches(small, known, n=1, cutoff=0.87):
        return close[0]
    if "." in small:
        head, tail = small.split(".", 1)
        heads = get_close_matches(head, {key.split(".")[0] for key in known if "." in key}, n=1)
        inside = {
            key.partition(".")[2] for key in known if heads and key.startswith(f"{heads[0]}.")
        }
        if close := get_close_matches(tail, inside, n=1):
            return f"{heads[0]}.{close[0]}"
    if close := get_close_matches(small, known, n=1, cutoff=0.75):
        return close[0]
    last_parts = {key.rpartition(".")[2]: key for key in sorted(known, reverse=True)}
    close = get_close_matches(last, last_parts, n=1, cutoff=0.7)
    return last_parts[close[0]] if close else None


def closest(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The name of `known` that is `word` but for case or a few letters, if there is one."""
    same = [name for name in known if name.lower() == word.lower()]
    return next(iter(same or get_close_matches(word.lower(), known, n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Collection[str], prefix: str = "") -> str:
    """The end of a sentence: the name that was probably meant, else all there are, if few."""
    if found := closest(word, known):
        return f"; did you mean {prefix}{found}?"
    return f"; there is {listed(known)}"


def listed(names: Collection[str]) -> str:
    """Names in one order, a dozen of them at most."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 12} more" if len(ordered) > 12 else ""
    return ", ".join(ordered[:12]) + more
