"""Mistakes that people make on a command line and in YAML, drawn from the schema and written down.

Those that are drawn are the same in every run of the tests; each says what its sentence must name.
"""

import random
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, NamedTuple, Union, get_args, get_origin

from configs.names import config_groups, key_types

RANDOM = 20_260


class Mistake(NamedTuple):
    """What was typed, and what its sentence must name, one of several."""

    words: tuple[str, ...]
    names: tuple[str, ...]


def own_keys() -> dict[str, Any]:
    """{key: type}, of the keys that have a value."""
    return {
        key: kind
        for key, kind in key_types().items()
        if not key.startswith("hydra.") and not is_dataclass(kind)
    }


def misspelt(word: str, draw: random.Random) -> Iterator[str]:
    """`word` with a letter left out, two swapped, one doubled, and one replaced."""
    place = draw.randrange(1, len(word) - 1)
    yield word[:place] + word[place + 1 :]
    yield word[: place - 1] + word[place] + word[place - 1] + word[place + 1 :]
    yield word[:place] + word[place] + word[place:]
    yield word[:place] + draw.choice("qxz") + word[place + 1 :]


def misspelt_keys() -> Iterator[Mistake]:
    """Each key with a mistake in its last part, and in its section."""
    draw, known = random.Random(RANDOM), key_types()
    for key in own_keys():
        section, _, last = key.rpartition(".")
        dot = "." if section else ""
        wrong = [f"{section}{dot}{each}" for each in misspelt(last, draw)] if len(last) > 3 else []
        if section:
            wrong.append(f"{next(misspelt(section, draw))}.{last}")
        wrong = [each for each in wrong if each not in known and each not in config_groups()]
        yield from (
            Mistake((f"{each}=1",), (key,)) for each in draw.sample(wrong, min(2, len(wrong)))
        )


def misplaced_keys() -> Iterator[Mistake]:
    """Each key in another section, without one, in capitals, and with a dash."""
    draw, keys = random.Random(RANDOM), own_keys()
    sections = sorted({key.partition(".")[0] for key in keys if "." in key})
    for key in keys:
        section, _, last = key.rpartition(".")
        same = tuple(each for each in keys if each.rpartition(".")[2] == last)
        wrong = [f"{draw.choice(sections)}.{last}", key.upper(), key.replace("_", "-")]
        wrong += [last] if section else []
        for each in wrong:
            if each not in keys and each not in config_groups():
                yield Mistake((f"{each}=1",), same)


def misspelt_options() -> Iterator[Mistake]:
    """Each option of each group, misspelt, and with its file's ending."""
    draw = random.Random(RANDOM)
    for group, options in config_groups().items():
        for option in sorted(options):
            wrong = next(each for each in misspelt(option, draw) if each not in options)
            named = tuple(f"{group}={each}" for each in options)
            flags = ("-m",) if group == "sweep" else ()
            yield Mistake((*flags, f"{group}={wrong}"), named)
            yield Mistake((*flags, f"{group}={option}.yaml"), (f"{group}={option}",))
            if group not in ("sweep", "plan") and f"{group}.{option}" not in key_types():
                yield Mistake((f"{group}.{option}",), (f"{group}={option}",))


def wrong_values() -> Iterator[Mistake]:
    """Values of another type than a key's, and of its type in another unit."""
    draw = random.Random(RANDOM)
    for key, kind in own_keys().items():
        optional = get_origin(kind) in (types.UnionType, Union)
        if optional:
            (kind,) = [each for each in get_args(kind) if each is not type(None)]
        else:
            yield Mistake((f"{key}=null",), (f"{key}=null",))
        if kind is int:
            wrong = ["many", "4k", "1.5", "1e9", "true", "[1]", "2 000"]
        elif kind is float:
            wrong = ["fast", "30s", "nan", "true", "3 e-4", "[1]"]
        elif kind is bool:
            wrong = ["maybe", "ture", "[true]"]
        elif isinstance(kind, type) and issubclass(kind, Enum):
            wrong = [next(misspelt(f"{option.name}x", draw)) for option in kind]
        elif get_origin(kind) is list:
            wrong = ["a", "7"]
        else:
            wrong = ["[a]", "{a: 1}"]
        for value in draw.sample(wrong, min(2, len(wrong))):
            yield Mistake((f"{key}={value}",), (f"{key}=",))


TYPED = {
    # as typed -> what the sentence says
    ("steps",): "an override is written key=value",
    ("steps:200",): "as steps=200",
    ("steps", "=", "200"): "written without spaces, as steps=200",
    ("steps=", "200"): "written without spaces, as steps=200",
    ("steps==200",): "one = is enough, as steps=200",
    ("=200",): "an override is written key=value",
    ("--learning_rate", "3"): "keys are written without dashes, as optimizer.learning_rate=3",
    ("--steps=3",): "as steps=3",
    ("--hepl",): "did you mean --help?",
    ("--multi-run", "seed=1,2"): "did you mean --multirun?",
    ("--config-name", "mine"): "configs/experiment/NAME.yaml",
    ("--plan=true",): "--plan is said without a value",
    ("plan=true",): "say --plan",
    ("plan=h100",): "did you mean plan=h100_8?",
    ("-m", "--plan", "seed=1,2"): "leave out -m",
    ("seed=1,2",): "start it with -m, as train.py -m seed=1,2",
    ("sweep=models",): "start it with -m",
    ("-m", "seed=1,two"): "seed=two: needed a whole number",
    ("-m", "model=retnet_tiny,retnet_bsae"): "did you mean model=retnet_base?",
    ("-m", "model=glob(mamba*)"): "no option of this name",
    ("-m", "seed=range(3,1)"): "seed=range(3,1): there is no value in it",
    ("-m", "seed=1,2", "hydra.launcher.at_onec=2"): "did you mean hydra.launcher.at_once?",
    ("-m", "seed=1,2", "hydra.launcher.at_once=all"): "hydra.launcher.at_once=all: needed a whole",
    ("-m", "seed=1,2", "hydra/launcher=joblib"): "several models in one process",
    ("hydra.run.dir=elsewhere",): "set name=",
    ("data.files=[a-d]*.txt",): """as 'data.files="[a-d]*.txt"'""",
    ("data.data_files=a.json",): "needed a list, as 'data.data_files=[a.json]'",
    (
        "data.sources=[{name: a, weihgt: 2}]",
    ): "data.sources[0] has no key weihgt; did you mean weight?",
    ("data.sources[0].weight=2",): "write the whole list, as data.sources=[...]",
    ("data.stages=[{position: far}]",): "data.stages[0].position=far: needed a whole number",
    ("~steps",): "a key cannot be taken away",
    ("+steps=3",): "leave out the +",
    ("++stps=3",): "did you mean steps?",
    ("model@other=retnet_tiny",): "write model=...",
    ("model={num_layers: 2}",): "set its keys one by one",
    ("steps=10", "steps=20"): "steps=10 and steps=20: given twice",
    ("model=retnet_tiny", "model=retnet_base"): "given twice",
    ("optimizer=sgd",): "there is no configs/optimizer/sgd.yaml; there is adamw",
    ("model=RetNet_Tiny",): "did you mean model=retnet_tiny?",
    ("experiment=configs/experiment/nucleus_x_7b.yaml",): "did you mean experiment=nucleus_x_7b?",
    ("retnet_base",): "an option of a group is written model=retnet_base",
    ("lr=1",): "did you mean optimizer.learning_rate?",
    ("model.d_model=256",): "did you mean model.hidden_size?",
    ("gpus=8",): "deepspeed --num_gpus 8",
    ("--num_gpus", "2"): "deepspeed --num_gpus 8",
    ("--resume",): "the same command goes on where the run stopped",
    ("--master_port=3",): "there is no flag --master_port; see --help",
    ("-plan",): "did you mean --plan?",
    ("--config", "mine.yaml"): "configs/experiment/NAME.yaml",
    ("--cfg", "jobb"): "needed one of job, hydra, all",
    ("hydra.mode=MULTIRUN",): "a sweep is asked for with -m",
    ("training.steps=100",): "did you mean steps?",
    ("logging.level=debug",): "there is no key logging.level; logging has",
    ("/model=retnet_base",): "as model",
    ("model..num_layers=3",): "as model.num_layers",
    ("configs/experiment/quickstart.yaml",): "is written experiment=quickstart",
    ("seed=1,", "2"): "written without spaces, as seed=1,2",
    ("seed=1,",): "write no comma at the end, as seed=1",
    ("data.stages=[{position:", "5,", "weights:", "{a:", "1}}]"): "a bracket is not closed",
    ('name="a',): "a quote is not closed",
    ("data.validation_bytes=1MB",): "as data.validation_bytes=1000000",
    ("data.longest_document=1MiB",): "as data.longest_document=1048576",
    ("steps = 5",): "written without spaces, as steps=5",
    ("steps=5 name=x",): "leave out the quotes around them",
    ("seed=99999999999999999999",): "below 2^63 (Decides the initial weights",
    ("--devices", "4"): "a plan's are plan.devices=8",
    ("optimizer.betas=[0.9,0.95]",): "did you mean optimizer.beta1?",
    ("checkpoint.dir=/x",): "checkpoint has asynchronous, copy_timeout",
    ("logging.wandb.mode=offline",): "did you mean logging.wandb?",
    ("steps.first=1",): "did you mean steps?",
    ("tokens_per_step=4M",): "did you mean global_batch_size?",
    ("global_batch_size=4M",): "as global_batch_size=4000000 (Rows of one optimizer step",
    ("schedule.warmup_steps=10%",): "without a unit (Steps of linear rise",
    ("data.kind=jsonl",): "did you mean data=jsonl?",
    ("engine.stage=zero2",): "did you mean engine=zero2?",
    ("logging.wandb=true",): "did you mean online?",
    ("~model",): "a group cannot be taken away",
    ("model=[]",): "model=[]: needed one of",
    ("experiment=",): "to leave it out, write '~experiment'",
    ("data.sources=[{name:", "a}]"): "a bracket is not closed",
    ("",): "a word of the command is empty",
    ("experiment=null",): "to leave it out, write '~experiment'",
    ("engine=null",): "engine=null: needed one of offload, zero0",
    ("engine.compile=true",): "did you mean on?",
    ("engine.dtype=fp16",): "did you mean float16?",
    ("sequence_length=4Ki",): "as sequence_length=4096",
    ("optimizer.weight_decay=5%",): "as optimizer.weight_decay=0.05",
    ("global_batch_size=1e3",): "written out it is global_batch_size=1000",
}
"Refused before anything is composed."

CONTRADICTIONS = {
    # refused by the dataclasses, together
    ("steps=0",): "steps=0: needed at least 1",
    ("name=../elsewhere",): "name='../elsewhere' must be a folder's name below runs/",
    ("name=",): "must be a folder's name below runs/",
    ("name=???",): "name=???: needed a value",
    ("name=.",): "must be a folder's name below runs/",
    ("name=runs/first-run",): "write name=first-run",
    ("name=${oc.env:NOT_THERE}",): "name: Environment variable 'NOT_THERE' not found",
    ("hydra.sweeper.n_trials=3",): "there is no key hydra.sweeper.n_trials",
    ("hydra/sweeper=optuna2",): "hydra/sweeper/optuna2",
    (
        "data.files=a.txt",
    ): "data.kind=python does not read data.files, which is given: say data=files",
    ("data=files", "data.files=shards"): "give a glob like 'shards/**/*.md'",
    ("micro_batch_size=3",): "global_batch_size=8 is no multiple of micro_batch_size=3",
    ("model.hidden_size=250",): "model.hidden_size=250 does not give model.num_heads=3 heads",
    ("model.num_heads=0",): "model.num_heads=0: needed at least 1",
    ("model.value_dim=100",): "model.value_dim=100 does not divide into model.num_heads=3",
    ("model.activation=foo",): "model.activation=foo: needed one of",
    ("model.dropout=1",): "model.dropout=1.0: needed 0 <= dropout < 1",
    ("model.initializer_range=-0.1",): "model.initializer_range=-0.1: needed at least 0",
    ("checkpoint.copy_to=s3:/bucket",): "an address has two slashes",
    ("data.cache=runs/a-file",): "give another data.cache=",
    ("data=jsonl", "data.data_files=[empty.jsonl]"): "every file is empty",
    ("model=nucleus_x_tiny", "model.gated=false"): "NucleusX is always gated",
    ("tokenizer.vocab_size=9999",): "does not fit into model.vocab_size=4096",
    ("tokenizer.vocab_size=100",): "set tokenizer.vocab_size to 300 or more",
    ("tokenizer=bpe_32k",): "does not fit into model.vocab_size=4096",
    ("kernels=apex",): "kernels.rms_norm=apex",
    ("kernels.loss=apex",): "there is no apex backend for loss",
    ("engine=offload", "engine.stage=0"): "only a ZeRO stage offloads its optimizer",
    ("engine=zero0", "engine.dtype=float16"): "only a ZeRO stage scales the loss",
    ("engine=zero3", "engine.compile=on"): "engine.stage is 3",
    ("optimizer.beta2=1",): "optimizer.beta2 is 1.0",
    ("schedule.warmup_steps=-1",): "schedule.warmup_steps is -1",
    ("plan.mfu=40",): "plan.mfu=40.0: needed a share",
    ("limits.hang=100",): "limits.hang=100 must be above data.retry_seconds=300",
    ("data=files",): "data=files needs data.files=...",
    ("data=hub",): "data=hub needs data.dataset=...",
    ("data=jsonl",): "needs data.data_files",
    ("data=prepared",): "data=prepared needs data.path=...",
    ("data=mixture",): "data=mixture needs data.sources",
    ("tokenizer=hugging_face",): "tokenizer=hugging_face needs tokenizer.path=...",
    ("data.validation_fraction=2",): "data.validation_fraction=2.0 must lie between 0 and 1",
    ("data.validation_split=test",): "data.validation_split=test needs data.kind=dataset",
    ("data=files", "data.files=none/*.txt"): "data.files=none/*.txt matches no file",
    (
        "data=jsonl",
        "data.data_files=[none.json]",
    ): "data.data_files has none.json, which matches no",
    ("data=prepared", "data.path=none"): "data.path=none is no folder",
    ("data=prepared", "data.path=shards"): "data.path=shards has no index.json",
    ("tokenizer.path=none.model",): "tokenizer.path=none.model is not there",
    ("name=a-sweep",): "runs/a-sweep holds a sweep",
    ("name=a-file",): "runs/a-file is a file",
    ("name=another",): "holds a run with model.num_layers=3",
    ("name=spoilt",): "runs/spoilt/config.yaml is no config of a run",
}
"Composed and refused, in a folder that `test_words` prepares."

HEAD = "# @package _global_\n"
FILES = {
    # an experiment's text -> what the sentence says, after the file's name
    HEAD + "stpes: 3\n": "line 2: there is no key stpes; did you mean steps?",
    HEAD + "optimizer:\n  learnin_rate: 1e-3\n": "line 3: there is no key optimizer.learnin_rate",
    HEAD + "modle:\n  num_layers: 2\n": "line 2: there is no key modle; did you mean model?",
    HEAD + "steps: many\n": "line 2: steps=many: needed a whole number",
    HEAD + "steps:\n": "line 2: steps=null: this key cannot be left empty",
    HEAD + "sequence_length: 4k\n": "line 2: sequence_length=4k: needed a whole number",
    HEAD + "kernels:\n  retention: cuda\n": "line 3: kernels.retention=cuda: needed one of auto",
    HEAD + "model:\n\tnum_layers: 2\n": "line 3: this is no YAML",
    HEAD + "data:\n  data_files: [a, b\n": "this is no YAML",
    HEAD + "- steps\n": "needed lines of key: value",
    "steps: 3\n": "line 1: the first line must be # @package _global_",
    HEAD + "model: retnet_base\n": "line 2: model has keys of its own, and here it is retnet_base",
    HEAD + "optimizer:\n": "line 2: optimizer has keys of its own, and here it is null",
    HEAD
    + "optimizer.eps: 1\n": "line 2: optimizer.eps stands below its section, as optimizer: {eps",
    HEAD + "steps: 1e4\n": "line 2: steps=10000.0: needed a whole number",
    HEAD + "? [a, b]\n: 3\n": "line 2: a key is one word",
    HEAD + "seed: !!python/name:os.system x\n": "line 2: this is no YAML",
    HEAD + "engine:\n  compile: on\n": """did you mean on? In YAML it stands in quotes, as "on\"""",
    HEAD + "defaults:\n  - override /evaluation: off\n": "line 3: off is written in quotes here",
    HEAD + "defaults:\n  - override model: retnet_base\n": "line 3: a group has a slash here",
    HEAD + "defaults:\n  - retnet_base\n": "chosen as - override /model: retnet_base",
    HEAD + "defaults:\n  model: retnet_base\n": "line 3: defaults needs a list",
    HEAD + "steps: 3\nsteps: 4\n": "line 3: steps stands here a second time",
    HEAD + "defaults:\n  - override /modle: retnet_base\n": "there is no group modle; did you mean",
    HEAD + "defaults:\n  - override /model: retnet_bse\n": "did you mean model=retnet_base?",
    HEAD + "defaults:\n  - /model: retnet_base\n": "line 3: model has an option already",
    HEAD + "data:\n  sources:\n    - {name: a, weihgt: 2}\n": "data.sources[0] has no key weihgt",
    HEAD + "name: \udce9\n": "this is no text in UTF-8",
}
"Experiments that do not compose; a surrogate stands for a byte that is no UTF-8."
