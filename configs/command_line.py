"""A command's words, sorted into overrides and flags; what is neither is answered with how it is
written. Not here: which names and values there are (`names.py`, `values.py`).
"""

import re
from itertools import pairwise
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from configs.names import (
    DEVICES,
    RESUMES,
    closest,
    closest_key,
    key_types,
    option_of,
    own_names,
    unknown_key,
)
from configs.values import shown

MULTIRUN = {"-m", "--multirun"}
ASK_HYDRA = {"--hydra-help", "--version", "-v", "--info", "-i", "--shell-completion", "-sc"}
SHOWS = ("job", "hydra", "all")
"What --cfg can print."
WITH_VALUE = {"--cfg", "-c", "--package", "-p"}
ALONE = {"-h", "--help", "--plan", "--resolve", "--run", "-r"} | MULTIRUN
FLAGS = ALONE | ASK_HYDRA | WITH_VALUE
OTHER_CONFIGS = {
    *("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd"),
    *("--config", "--config-file", "--experimental-rerun"),
}


class CommandLine(NamedTuple):
    """The words of a command, sorted."""

    overrides: list[str]
    flags: set[str]


def split(arguments: list[str]) -> CommandLine:
    """Overrides, and the names of flags; a flag's value (--cfg job) is neither."""
    overrides: list[str] = []
    flags: set[str] = set()
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        name, equals, value = word.partition("=")
        if name in OTHER_CONFIGS:
            raise ValueError(
                f"{name}: the config is configs/train.yaml; put what is yours into a file "
                "configs/experiment/NAME.yaml, and say experiment=NAME"
            )
        if name in ALONE and equals:
            raise ValueError(f"{word}: {name} is said without a value")
        if name not in FLAGS:
            raise ValueError(_unknown_flag(word, next(words, "")))
        flags.add(name)
        if name in WITH_VALUE and not equals:
            value = next(words, "")
        if name in ("--cfg", "-c") and value not in SHOWS:
            said = f"{name} {value}".strip()
            raise ValueError(f"{said}: needed one of {', '.join(SHOWS)}, as --cfg job")
    for index, (before, after) in enumerate(pairwise(overrides)):
        cut = "=" in before and before.endswith(("=", ",")) and "=" not in after
        if after.startswith("=") or cut:
            words = overrides[index : index + (3 if after == "=" else 2)]
            raise ValueError(f"{' '.join(words)}: written without spaces, as {''.join(words)}")
    return CommandLine(overrides, flags)


def in_order(arguments: list[str]) -> list[str]:
    """The same words with the flags behind the overrides: Hydra takes no override behind a flag
    that comes after another override."""
    overrides: list[str] = []
    flags: list[str] = []
    words = iter(arguments)
    for word in words:
        (flags if word.startswith("-") else overrides).append(word)
        if word in WITH_VALUE:
            flags += [value for value in (next(words, None),) if value is not None]
    return arguments if set(flags) & ASK_HYDRA else overrides + flags


def _unknown_flag(word: str, after: str) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    name, value = name.replace("-", "_"), value or after
    known = own_names()
    flag, typed = closest(word.partition("=")[0], FLAGS, cutoff=0.8), word.partition("=")[0]
    if flag and (name not in known or f"--{name}" == flag):
        return f"there is no flag {typed}; did you mean {flag}?"
    if name in DEVICES | RESUMES:
        return unknown_key(name)
    if (meant := closest_key(name, known)) is None:
        return f"there is no flag {typed}; see --help"
    if not value or value.startswith("-") or "=" in value:
        value = "..."
    return f"{word}: keys are written without dashes, as {meant}={value}"


def parse(text: str) -> Override:
    """One override; raises ValueError where it is none."""
    key, equals, value = text.partition("=")
    if not text.strip():
        raise ValueError("a word of the command is empty: an override is written key=value")
    if equals and key.strip() and key != key.strip():
        words = f"{key.strip()}={value.strip()}"
        raise ValueError(f"{shown(text)}: written without spaces, as {shown(words)}")
    if equals and value.startswith("=") and key:
        raise ValueError(f"{shown(text)}: one = is enough, as {key}={value.lstrip('=') or '...'}")
    if equals and not key.strip("+~ "):
        raise ValueError(_odd_key(key, value))
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if not equals:
            raise ValueError(_no_override(text)) from error
        if not re.fullmatch(r"[+~]*[\w-]+([./@][\w-]+)*", key, re.ASCII):
            raise ValueError(_odd_key(key, value)) from error
        if sum(map(value.count, "[{(")) != sum(map(value.count, ")}]")):
            raise ValueError(
                f"{shown(text)}: a bracket is not closed, as where the shell cuts at a space; put "
                f"the whole override in quotes, as '{key}=...'"
            ) from error
        if any(value.count(quote) % 2 for quote in ("'", '"')):
            raise ValueError(f"{shown(text)}: a quote is not closed") from error
        if value.endswith(","):
            as_meant = f"{key}={value.rstrip(', ')}"
            raise ValueError(f"{shown(text)}: write no comma at the end, as {as_meant}") from error
        if re.search(r"[^\[{(\s]+\s+[+~]*[\w./]+=", value):
            raise ValueError(
                f"{shown(text)}: several overrides in one word; leave out the quotes around them"
            ) from error
        raise ValueError(
            f"{shown(text)}: a value with brackets, commas, spaces or signs beyond a-z is written "
            f"""in two kinds of quotes, as '{key}="{shown(value)}"'"""
        ) from error
    if not equals and not override.is_delete():
        raise ValueError(_no_override(text))
    return override


def _no_override(text: str) -> str:
    if option := option_of(text):
        return f"{text}: an option of a group is written {option}"
    key, colon, value = text.partition(":")
    if colon and re.fullmatch(r"[\w.]+", key):
        meant = closest_key(key, own_names()) or key
        return f"{text}: an override is written key=value, as {meant}={value.strip() or '...'}"
    example = "steps=200"
    if found := closest_key(text, own_names()) if re.fullmatch(r"[\w./-]+", text) else None:
        example = f"{found}=..."
    return f"{shown(text)}: an override is written key=value without spaces, as {example}"


def _odd_key(key: str, value: str) -> str:
    bare = re.sub(r"\[.*", "", key.strip("+~ "))
    if "[" in key and bare in key_types():
        return (
            f"{key}: an entry of a list is not set by itself; write the whole list, as {bare}=[...]"
        )
    if not bare:
        return f"={shown(value)}: an override is written key=value without spaces, as steps=200"
    meant = closest_key(".".join(re.findall(r"[\w-]+", key)), own_names())
    example = meant or "optimizer.learning_rate"
    return f"{key}: a key is written in letters, digits, _ and dots, as {example}"


def raw(override: Override) -> str:
    """The value as it was typed."""
    return (override.input_line or "").partition("=")[2]
