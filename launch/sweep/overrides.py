"""Hydra's overrides as a sweep needs them: which are swept, and the value that a point has."""

import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString


def parsed(texts: Iterable[str]) -> dict[str, Override]:
    """By key, the last one of each."""
    found = OverridesParser.create().parse_overrides(list(texts))
    return {override.key_or_group: override for override in found}


def typed(override: Override) -> Any:
    """The value that a point's override gives: a plain one, without Hydra's types."""
    return _plain(override.value())


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def key_of(text: str) -> str:
    """The key of an override."""
    return re.split(r"[=@]", text.lstrip("+~"))[0]
