"""What is wrong with a value, by the type that its key was declared with, before anything is
composed. Not here: what only several keys together get wrong; the dataclasses check that.
"""

import math
import re
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.types import QuotedString

from configs.names import closest, config_groups, did_you_mean, listed, meaning

SAME = {
    # other words for our options
    **dict.fromkeys(("fp16", "half"), ["float16"]),
    **{"bf16": ["bfloat16"], "fp32": ["float32"], "full": ["block"]},
    **dict.fromkeys(("true", "yes"), ["on", "online"]),
    **dict.fromkeys(("false", "no", "disabled"), ["off", "none"]),
}
MAY_BE_LEFT_OUT = ("experiment", "sweep")
BOOLEANS = {"true", "false", "yes", "no", "on", "off", "y", "n", "1", "0"}
UNITS = {"k": 1_000, "m": 1_000_000, "g": 10**9, "b": 10**9, "ki": 2**10, "mi": 2**20}
WITH_UNIT = re.compile(r"(?P<number>[\d_]*\.?\d+)\s*(?P<unit>[A-Za-z%]+)")


def check_value(key: str, kind: Any, value: Any) -> None:
    """Raises ValueError with one sentence where `value`, as the command line or YAML gives it, is
    not of `kind`, the annotated type of `key`."""
    if isinstance(value, QuotedString):
        value = value.text
    if get_origin(kind) in (types.UnionType, Union):
        if value is None:
            return
        (kind,) = [each for each in get_args(kind) if each is not type(None)]
    if value is None:
        raise ValueError(f"{key}=null: this key cannot be left empty{_hint(key)}")
    if isinstance(value, str) and ("${" in value or value == "???"):
        return  # composing tells
    if isinstance(kind, type) and issubclass(kind, Enum):
        _check_option(key, kind, value)
    elif get_origin(kind) is list:
        _check_list(key, get_args(kind)[0], value)
    elif get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key}={shown(value)}: needed names with values, as {{code: 1}}")
        for name, each in value.items():
            check_value(f"{key}.{name}", get_args(kind)[1], each)
    elif is_dataclass(kind):
        check_entry(key, kind, value)
    elif isinstance(value, list | dict):
        raise ValueError(f"{key}={shown(value)}: needed {NEEDED[kind]}, not a list{_hint(key)}")
    else:
        CHECKS[kind](key, value)


def check_option(group: str, value: object) -> None:
    """Raises ValueError where a group has no such option."""
    options = config_groups()[group]
    if isinstance(value, list) and value:
        for each in value:
            check_option(group, each)
        return
    if isinstance(value, dict):
        raise ValueError(f"{group}={shown(value)}: set its keys one by one, as {group}.key=value")
    if isinstance(value, QuotedString):
        value = value.text
    if value in (None, "", []):
        instead = f"needed one of {listed(options)}"
        if group in MAY_BE_LEFT_OUT:
            instead = f"to leave it out, write '~{group}'"
        raise ValueError(f"{group}={shown(value)}: {instead}")
    if value in options:
        return
    if group == "plan" and not (isinstance(value, str) and closest(value, options)):
        raise ValueError(
            f"plan={shown(value)}: plan= names a machine, as plan=h200_8; to see what a run would "
            "cost, say --plan"
        )
    text = shown(value).removesuffix(".yaml").rpartition("/")[2]
    end = f"; did you mean {group}={text}?" if text in options else ""
    raise ValueError(
        f"{group}={shown(value)}: there is no configs/{group}/{text}.yaml"
        f"{end or did_you_mean(text, options, prefix=f'{group}=')}"
    )


def check_entry(key: str, schema: type, value: Any) -> None:
    """Raises ValueError where `value` is no mapping with the keys of a dataclass."""
    if not isinstance(value, dict):
        example = fields(schema)[0].name
        raise ValueError(f"{key}={shown(value)}: needed keys with values, as {{{example}: ...}}")
    kinds = get_type_hints(schema)
    for name, each in value.items():
        name = str(getattr(name, "text", name))
        if name not in kinds:
            raise ValueError(f"{key} has no key {name}{did_you_mean(name, kinds)}")
        check_value(f"{key}.{name}", kinds[name], each)


def _check_list(key: str, kind: Any, value: Any) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{key}={shown(value)}: needed a list, as '{key}=[{shown(value)}]'")
    for index, each in enumerate(value):
        check_value(f"{key}[{index}]", kind, each)


def _check_option(key: str, kind: type[Enum], value: Any) -> None:
    names = [option.name for option in kind]
    if value not in names:
        word = str(value).lower()
        close = next((each for each in SAME.get(word, ()) if each in names), closest(word, names))
        end = _option_of(key, value) or (f"; did you mean {close}?" if close else "")
        if isinstance(value, bool) and close:  # YAML takes on and off for true and false
            end = f"""; did you mean {close}? In YAML it stands in quotes, as "{close}\""""
        raise ValueError(f"{key}={shown(value)}: needed one of {', '.join(names)}{end}")


def _option_of(key: str, value: Any) -> str:
    """The end of a sentence where the value is an option of the key's group."""
    group = key.partition(".")[0]
    is_option = str(value) in config_groups().get(group, ())
    return f"; did you mean {group}={value}?" if is_option else ""


def _check_whole(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{key}={shown(value)}: needed {NEEDED[int]}{_hint(key)}")
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML takes it for text
    if isinstance(value, float):
        whole = math.isfinite(value) and value == int(value)
        end = f"; written out it is {key}={int(value)}" if whole else _hint(key)
        raise ValueError(f"{key}={value}: needed a whole number, without point or exponent{end}")
    if not re.fullmatch(r"[+-]?\d+(_\d+)*", str(value).strip()):
        end = _option_of(key, value) or _unit(key, value, whole=True)
        raise ValueError(f"{key}={value}: needed {NEEDED[int]}{end}")
    if abs(int(value)) >= 2**63:
        raise ValueError(f"{key}={value}: needed {NEEDED[int]} below 2^63{_hint(key)}")


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, bool):
        raise ValueError(f"{key}={shown(value)}: needed {NEEDED[float]}{_hint(key)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{key}={value}: needed {NEEDED[float]}{_unit(key, value, whole=False)}"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"{key}={value}: needed a finite number{_hint(key)}")


def _check_claim(key: str, value: Any) -> None:
    if not isinstance(value, bool) and str(value).lower() not in BOOLEANS:
        close = closest(str(value), ("true", "false"))
        end = f"; did you mean {close}?" if close else ""
        raise ValueError(f"{key}={shown(value)}: needed {NEEDED[bool]}{end}")


def _check_text(key: str, value: Any) -> None:
    """Any scalar is text."""


CHECKS = {int: _check_whole, float: _check_number, bool: _check_claim, str: _check_text}
NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _unit(key: str, value: str, *, whole: bool) -> str:
    """The end of a sentence about a number that is none: without its unit, or without its space."""
    text = str(value).strip()
    if squeezed := re.fullmatch(r"[\d._]+ ?[eE] ?[+-]? ?\d+", text):
        return f", written without a space, as {key}={squeezed[0].replace(' ', '')}"
    if "," in text or " " in text:
        return f", written without spaces and commas{_hint(key)}"
    if not (found := WITH_UNIT.fullmatch(text)):
        return _hint(key)
    number = float(found["number"].replace("_", ""))
    unit = found["unit"].lower()
    factor = UNITS.get(unit) or UNITS.get(unit.removesuffix("b"))
    if whole and factor and number * factor == int(number * factor):
        return f" without a unit, as {key}={int(number * factor)}{_hint(key)}"
    if found["unit"] == "%" and not whole:
        return f", a share and not percent, as {key}={number / 100:g}"
    return f" without a unit{_hint(key)}"


def _hint(key: str) -> str:
    """The end of a sentence: what the key means, cut where a clause ends."""
    try:
        words = meaning(re.sub(r"\[\d+\]$", "", key))
    except (KeyError, TypeError, AttributeError):  # a key within a list's entry
        return ""
    first = re.split(r"[.;:] |[.;:]$", words)[0].strip()
    return f" ({first})" if first and len(first) <= 100 else ""


def shown(value: Any) -> str:
    """A value as it is written on a command line, cut where it is long."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif value is None:
        text = "null"
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {shown(each)}' for key, each in value.items())}}}"
    else:
        text = str(getattr(value, "text", value))
    return text if len(text) <= 60 else f"{text[:57]}..."
