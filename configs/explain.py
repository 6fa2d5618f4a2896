"""What is wrong with a command line, in one sentence, before anything starts.

Hydra says that a key is "not in struct"; this says which key was meant. It composes the config once
more than Hydra will, which costs a fraction of a second.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from configs.schema import Config, plain

FOLDER = Path(__file__).parent


def check_overrides(arguments: list[str]) -> Config | None:
    """Raises ValueError with one sentence for the first thing that is wrong with the overrides.

    Returns the config they compose to, or None where Hydra is asked for something else.
    """
    overrides, flags = split(arguments)
    if flags & {"-m", "--multirun"}:
        raise ValueError(
            "-m would train several models in one process, which DeepSpeed cannot; start one "
            "command for each point, each with its own name=..."
        )
    if flags & {"--hydra-help", "--version", "--info"}:
        return None
    parsed = [parse(override) for override in overrides]
    for override in parsed:
        check_name(override)
    try:
        with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3"):
            return plain(compose("train", overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error


def split(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Overrides, and the names of Hydra's own flags; a flag's value (--cfg job) is neither."""
    overrides, flags = [], set()
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.add(word.split("=")[0])
        if word in ("--cfg", "-c", "--package", "-p", "--config-name", "-cn"):
            next(words, None)
    return overrides, flags


def parse(text: str) -> Override:
    """One override; raises ValueError where it is none."""
    key, equals, value = text.partition("=")
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        if not equals:
            raise ValueError(f"{text}: an override is written key=value, as steps=200") from error
        raise ValueError(
            f"{text}: a value with brackets, braces, commas or spaces is written in two kinds of "
            f"""quotes, as '{key}="{value}"'"""
        ) from error


def check_name(override: Override) -> None:
    """Raises ValueError, with the nearest right one, for a key, group or option there is not."""
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    groups, known = config_groups(), set(config_keys(Config))
    if key in groups and "." not in key:
        option = override.value()
        if isinstance(option, str) and option not in groups[key] and not override.is_delete():
            raise ValueError(
                f"{key}={option}: there is no configs/{key}/{option}.yaml"
                f"{nearest(option, groups[key], prefix=f'{key}=')}"
            )
    elif key not in known:
        raise ValueError(f"there is no key {key}{nearest(key, known | set(groups))}")


def nearest(word: str, known: set[str], prefix: str = "") -> str:
    """The end of a sentence: the name that was probably meant, else all there are, if few."""
    close = get_close_matches(word, known, n=1, cutoff=0.75)
    if not close and "." in word:  # the group is misspelt, or the key within it
        head, tail = word.split(".", 1)
        heads = get_close_matches(head, {name.split(".")[0] for name in known}, n=1)
        inside = {name for name in known if heads and name.startswith(f"{heads[0]}.")}
        close = get_close_matches(f"{heads[0]}.{tail}" if heads else word, inside, n=1) or heads
    if not close:  # the group was left out
        by_last_part = {name.split(".")[-1]: name for name in sorted(known)}
        close = [by_last_part[part] for part in get_close_matches(word, by_last_part, n=1)]
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there is {', '.join(sorted(known))}" if len(known) <= 20 else "; see --help"


def explain(error: Exception) -> str:
    """Hydra's or OmegaConf's error as one line that names the key."""
    cause = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    key = getattr(cause, "full_key", None)
    message = first_line(getattr(cause, "msg", None) or cause)
    return f"{key}: {message}" if key and not message.startswith(key) else message


def first_line(error: object) -> str:
    """The first line of a message, without a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".")


def config_groups() -> dict[str, set[str]]:
    """The groups below configs/ and the options of each."""
    return {
        folder.name: {path.stem for path in folder.glob("*.yaml")}
        for folder in FOLDER.iterdir()
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def config_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a dataclass and of those it nests, with dots."""
    for item in fields(schema):
        yield prefix + item.name
        if is_dataclass(item.type):
            yield from config_keys(item.type, f"{prefix}{item.name}.")
