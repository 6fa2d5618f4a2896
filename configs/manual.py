"""What `python train.py --help` says: every group, every key, its default and its meaning.

The meanings are the lines under the dataclasses' fields, read from their source, so that nothing is
written twice.
"""

import textwrap
from dataclasses import fields, is_dataclass
from enum import Enum

from configs.explain import check_overrides
from configs.names import config_groups, field_docs
from configs.schema import Config

HEAD = """\
Trains a retentive language model: RetNet or NucleusX, under DeepSpeed ZeRO.

  python train.py [key=value ...] [group=option ...]       one process
  deepspeed train.py ...                                   every GPU of this machine
  deepspeed --hostfile hosts train.py ...                  every machine named in `hosts`

  python train.py -m key=value,value ...                   a sweep: one launch for each point
  python train.py ... --plan                               print what it would cost, start nothing
  python train.py ... --cfg job                            print the whole config, start nothing

The same command goes on where the run `name` stopped. Its folder is runs/<name>.
"""
WIDTH, INDENT = 100, 34


def manual(arguments: list[str]) -> str:
    """The text of --help, with the values that the other `arguments` compose to."""
    config = check_overrides(arguments)
    groups = config_groups()
    parts = [HEAD, "Groups\n"]
    parts += [_entry(f"  {name}=", " | ".join(sorted(groups[name]))) for name in sorted(groups)]
    parts.append("\nKeys\n")
    parts += _keys(config, "")
    return "\n".join(parts) + "\n"


def _keys(config: Config, prefix: str) -> list[str]:
    meanings, lines, nested = field_docs(type(config)), [], []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            nested += ["", *_keys(value, f"{prefix}{item.name}.")]
        else:
            shown = "null" if value is None else value.value if isinstance(value, Enum) else value
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            lines.append(_entry(f"  {prefix}{item.name}={shown}", meanings.get(item.name, "")))
    return lines + nested


def _entry(name: str, meaning: str) -> str:
    """A name and, beside it or below, its meaning in a column."""
    column = textwrap.wrap(meaning, WIDTH - INDENT) or [""]
    first = f"{name:<{INDENT - 2}}  {column[0]}"
    if len(name) > INDENT - 2:
        first = f"{name}\n{' ' * INDENT}{column[0]}"
    return "\n".join([first.rstrip(), *(" " * INDENT + line for line in column[1:])])
