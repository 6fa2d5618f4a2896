"""What is wrong with a command line, in one sentence, before anything starts.

Hydra says that a key is "not in struct"; this says which key was meant. Names and values are
looked at one by one, then the config is composed once more than Hydra will, which costs a fraction
of a second, and its dataclasses check what several keys say together.
"""

import re
from collections.abc import Iterator, Mapping

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Sweep,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from configs import names
from configs.command_line import ASK_HYDRA, MULTIRUN, parse, raw, split
from configs.files import check_files
from configs.names import LAUNCHER, config_groups, did_you_mean, key_types, unknown_key
from configs.schema import Config, plain
from configs.values import MAY_BE_LEFT_OUT, check_option, check_value, shown

LEFT_TO_THE_USER = re.compile(r"^(\w+): \?\?\?", re.MULTILINE)


def check_overrides(arguments: list[str]) -> Config | None:
    """Raises ValueError with one sentence for the first thing that is wrong with the command.

    Returns the config it composes to, or None where Hydra is asked for something else. Of a sweep
    every value is looked at and the first point is composed; its launcher checks the others.
    """
    overrides, flags = split(arguments)
    if flags & ASK_HYDRA and "--plan" not in flags:
        return None
    parsed = [parse(override) for override in overrides]
    sweeps = bool(flags & MULTIRUN)
    if sweeps and "--plan" in flags:
        raise ValueError("--plan tells of one run: leave out -m, and plan one point at a time")
    for override in parsed:
        check_override(override, sweeps)
    check_twice(parsed)
    config, swept = composed([first_of(override) for override in parsed])
    if not sweeps:
        return config
    given = {override.key_or_group for override in parsed}
    inside = [parse(f"{key}={value}") for key, value in swept.items() if key not in given]
    for override in inside:
        check_override(override, sweeps)
    if inside:
        composed([first_of(override) for override in [*parsed, *inside]])
    return None


def composed(overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """The config of one run, and what a named sweep among the overrides goes over."""
    try:
        with initialize_config_dir(config_dir=str(names.FOLDER), version_base="1.3"):
            made = compose("train", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        check_files(overrides)
        raise ValueError(explain(error)) from error
    try:
        swept = OmegaConf.select(made, "hydra.sweeper.params") or {}
        choices = made.hydra.runtime.choices
        OmegaConf.set_struct(made, False)
        del made["hydra"]
        check_set(made, choices)
        return plain(made), {str(key): str(value) for key, value in swept.items()}
    except OmegaConfBaseException as error:
        check_files(overrides)
        raise ValueError(explain(error)) from error


def check_override(override: Override, sweeps: bool) -> None:
    """Raises ValueError for a key, group, option or value that there is not, with the right one."""
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        _check_hydra(override)
        return
    if override.package is not None:
        raise ValueError(
            f"{key}@{override.package}: the options of {key} go where their group's name says; "
            f"write {key}=..."
        )
    groups, kinds = config_groups(), key_types()
    if key not in groups and key not in kinds:
        raise ValueError(unknown_key(key))
    if override.is_delete() and key not in MAY_BE_LEFT_OUT:
        what, other = ("group", "option") if key in groups else ("key", "value")
        raise ValueError(
            f"~{key}: a {what} cannot be taken away; give it another {other}, as {key}=..."
        )
    if override.is_add() and not override.is_force_add():
        raise ValueError(f"+{key}=...: {key} is there already; leave out the +")
    if not sweeps and (override.is_sweep_override() or (key == "sweep" and override.value())):
        what = f"{key}={raw(override)}"
        raise ValueError(
            f"{what} is a sweep of several runs: start it with -m, as train.py -m {what}"
        )
    if override.is_delete():
        return
    for value in values_of(override):
        if key in groups:
            check_option(key, value)
        else:
            check_value(key, kinds[key], value)


def _check_hydra(override: Override) -> None:
    """The launcher's own keys; the rest of Hydra's is Hydra's to check."""
    key = override.key_or_group
    if key == "hydra.mode":
        raise ValueError(f"{key}={raw(override)}: a sweep is asked for with -m, one run without")
    if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir"):
        raise ValueError(f"{key}={raw(override)}: a run's folder is runs/<name>; set name=...")
    if key == "hydra/launcher" and override.value() != "processes":
        raise ValueError(
            f"hydra/launcher={shown(override.value())} would train several models in one process, "
            "which DeepSpeed cannot; leave it out: each point is a launch of its own"
        )
    if not key.startswith(f"{LAUNCHER}."):
        return
    if key not in key_types():
        raise ValueError(unknown_key(key))
    if override.is_sweep_override():
        raise ValueError(f"{key}={raw(override)}: how a sweep is run cannot itself be swept")
    check_value(key, key_types()[key], override.value())


def check_twice(overrides: list[Override]) -> None:
    """Raises ValueError where one key is given two values, of which the last would win silently."""
    given: dict[str, str] = {}
    for override in overrides:
        key, typed = override.key_or_group, raw(override)
        if given.setdefault(key, typed) != typed:
            raise ValueError(f"{key}={given[key]} and {key}={typed}: given twice; leave one out")


def values_of(override: Override) -> Iterator[object]:
    """The value, or all that a sweep lists; of an interval its two ends."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        yield from value.list
    elif isinstance(value, IntervalSweep):
        yield from (value.start, value.end)
    elif isinstance(value, Glob):
        yield from _matching(override, value)
    elif isinstance(value, Sweep):
        yield from override.sweep_iterator()
    else:
        yield value


def _matching(override: Override, pattern: Glob) -> list[str]:
    found = pattern.filter(sorted(config_groups().get(override.key_or_group, ())))
    if not found:
        raise ValueError(
            f"{override.key_or_group}={raw(override)}: no option of this name"
            f"{did_you_mean('', config_groups().get(override.key_or_group, ()))}"
        )
    return found


def first_of(override: Override) -> str:
    """The override as text, with the first value where it is a sweep."""
    if not override.is_sweep_override():
        return override.input_line
    value = next(iter(values_of(override)), override)
    if value is override:
        raise ValueError(f"{override.input_line}: there is no value in it")
    return f"{override.get_key_element()}={Override._get_value_element_as_str(value)}"


def explain(error: Exception) -> str:
    """Hydra's, OmegaConf's or YAML's error as one line that names the key."""
    if re.search(r"hydra/sweeper/optuna\b", str(error)):
        return "hydra/sweeper=optuna is not installed: pip install 'retnet[sweeps]'"
    cause = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    key = getattr(cause, "full_key", None)
    message = first_line(getattr(cause, "msg", None) or cause)
    if key and re.fullmatch(r"Key '.*' (is )?not in .*", message):
        return f"there is no key {key}"
    if message.endswith(f"missing mandatory value: {key}"):
        return f"{key}=???: needed a value, and ??? stands for none"
    message = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", message)
    return f"{key}: {message}" if key and not message.startswith(key) else message


def check_set(made: DictConfig, choices: Mapping[str, str]) -> None:
    """Raises ValueError where a chosen option leaves a key to the user (`key: ???`) and nobody set
    it; composing would take the schema's empty default for it."""
    for group in config_groups():
        file = names.FOLDER / group / f"{choices.get(group)}.yaml"
        if not file.is_file():
            continue
        left = [f"{group}.{key}" for key in LEFT_TO_THE_USER.findall(file.read_text())]
        unset = [key for key in left if OmegaConf.select(made, key) is None]
        if unset:
            words = names.meaning(unset[0]).partition(";")[0].rstrip(".")
            needed = " ".join(f"{key}=..." for key in left)
            raise ValueError(f"{group}={choices[group]} needs {needed} ({words})")


def first_line(error: object) -> str:
    """The first line of a message, without a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".")
