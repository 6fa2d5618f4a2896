"""What is wrong in the YAML files that a command chose, with file and line: looked at where they do
not compose, to say more than Hydra does. Not here: what only several keys together get wrong.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs import names
from configs.names import config_groups, did_you_mean, key_types, option_of, unknown_key
from configs.values import check_option, check_value, shown

WHOLE = ("experiment", "sweep")
"Groups whose files say keys of every section."


class Place(NamedTuple):
    """A line of a file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"configs/{self.file.relative_to(names.FOLDER)}, line {self.line}"


def check_files(overrides: list[str]) -> None:
    """Raises ValueError for the first mistake in train.yaml or in a file that the overrides or an
    experiment choose; nothing where all that is wrong is elsewhere."""
    groups = config_groups()
    for override in overrides:
        group, _, option = override.lstrip("+~").partition("=")
        if group in groups and option in groups[group]:
            check_file(names.FOLDER / group / f"{option}.yaml", group)
    check_file(names.FOLDER / "train.yaml", "")


def check_file(file: Path, group: str) -> None:
    """Raises ValueError for a file that is no YAML, or says a key, option or value that there is
    not. group: "" for train.yaml."""
    try:
        _check_text(file, group, file.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{Place(file, 1)}: this is no text in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ValueError(f"{Place(file, line)}: this is no YAML, {problem}") from error


def _check_text(file: Path, group: str, text: str) -> None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if group in WHOLE and "@package _global_" not in text.partition("\n")[0]:
        raise ValueError(f"{Place(file, 1)}: the first line must be # @package _global_")
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{Place(file, 1)}: needed lines of key: value")
    whole = not group or group in WHOLE
    for key_node, value_node in _once(file, root):
        if key_node.value == "defaults":
            _check_defaults(file, value_node)
        elif key_node.value != "hydra" or not whole:
            _check_key(file, "" if whole else f"{group}.", key_node, value_node)


def _once(file: Path, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a mapping; ValueError where a key stands twice."""
    seen = set()
    for key_node, value_node in node.value:
        place = Place(file, key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"{place}: a key is one word")
        if key_node.value in seen:
            raise ValueError(f"{place}: {key_node.value} stands here a second time; leave one out")
        seen.add(key_node.value)
        yield key_node, value_node


def _check_key(file: Path, prefix: str, key_node: yaml.Node, value_node: yaml.Node) -> None:
    key, place = f"{prefix}{key_node.value}", Place(file, key_node.start_mark.line + 1)
    kinds = key_types()
    if "." in key_node.value and key in kinds:
        section, _, last = key_node.value.rpartition(".")
        raise ValueError(f"{place}: {key} stands below its section, as {section}: {{{last}: ...}}")
    if key not in kinds:
        if key in config_groups():
            raise ValueError(f"{place}: {key} is chosen under defaults, as - override /{key}: ...")
        raise ValueError(f"{place}: {unknown_key(key)}")
    if is_dataclass(kinds[key]) and isinstance(value_node, yaml.MappingNode):
        for inner_key, inner_value in _once(file, value_node):
            _check_key(file, f"{key}.", inner_key, inner_value)
        return
    value = _plain(value_node)
    if is_dataclass(kinds[key]):
        raise ValueError(f"{place}: {key} has keys of its own, and here it is {shown(value)}")
    try:
        check_value(key, kinds[key], value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_defaults(file: Path, node: yaml.Node) -> None:
    """Groups and options of a defaults list."""
    groups = config_groups()
    for place, entry in _entries(file, node):
        if isinstance(entry, str):
            _check_other(file, place, entry)
            continue
        for name, option in entry.items() if isinstance(entry, dict) else ():
            path = str(name).removeprefix("override ").strip()
            group = path.lstrip("/")
            if group.split("/")[0] == "hydra":
                continue
            if group in groups and file.name != "train.yaml" and not str(name).startswith("over"):
                raise ValueError(
                    f"{place}: {group} has an option already; - override /{group}: ..."
                )
            if group not in groups:
                raise ValueError(f"{place}: there is no group {group}{did_you_mean(group, groups)}")
            if path == group and file.name != "train.yaml":
                raise ValueError(f"{place}: a group has a slash here, as - override /{group}: ...")
            if isinstance(option, bool):
                word = "on" if option else "off"
                raise ValueError(f"""{place}: {word} is written in quotes here, as "{word}\"""")
            if option is None:
                continue
            try:
                check_option(group, option)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            if group not in WHOLE:
                check_file(names.FOLDER / group / f"{option}.yaml", group)


def _check_other(file: Path, place: Place, entry: str) -> None:
    """Another file that is taken in whole."""
    beside = names.FOLDER if entry.startswith("/") else file.parent
    if entry in ("_self_", "schema") or (beside / f"{entry.lstrip('/')}.yaml").is_file():
        return
    option = option_of(entry) or "model=..."
    raise ValueError(
        f"{place}: there is no file {entry}.yaml beside this one; an option is chosen as "
        f"- override /{option.replace('=', ': ')}"
    )


def _entries(file: Path, node: yaml.Node) -> Iterator[tuple[Place, Any]]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError(f"{Place(file, node.start_mark.line + 1)}: defaults needs a list")
    for entry in node.value:
        yield Place(file, entry.start_mark.line + 1), _plain(entry)


def _plain(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)
