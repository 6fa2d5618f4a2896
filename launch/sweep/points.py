"""The points of a sweep: what each is called, and how far it is.

A name is a function of the point alone, so that the same sweep finds its points again, and a longer
one its old ones; a state is what the point's own folder says. Nothing is started here.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from launch.ending import how_it_ended
from launch.lock import is_held

# Characters of a point's name; a longer one is cut, and gets a mark of what was lost.
LONGEST = 80
AGAIN = ("new", "stopped", "killed", "failed", "refused")
"States in which a sweep starts a point; in others it leaves it."


class Point(NamedTuple):
    """One run of a sweep."""

    name: str
    "Below the sweep's own name."
    folder: Path
    "Its run folder."
    overrides: list[str]
    "What train.py is given for it, its name among them."
    swept: dict[str, Any]
    "The values that tell it from the others."
    steps: int
    "Those of the whole run."

    def value(self, state: str, metric: str, pruned: dict[str, dict[str, Any]]) -> float:
        """Its objective in that state; infinite where it has none, or did not come to its end.
        `pruned` holds those of points that were ended before."""
        if state == "pruned":
            return float(pruned[self.name]["objective"])
        found = objective_of(lines_of(self.folder / "metrics.jsonl"), metric)
        return math.inf if found is None or state != "finished" else found


def short_names(keys: Collection[str]) -> dict[str, str]:
    """Each key's last part, with as many of its parents before as tell it from the others'."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            short[key] = ".".join(parts[-count:])
            if not any(f".{other}".endswith(f".{short[key]}") for other in keys if other != key):
                break
    return short


def point_name(swept: dict[str, Any]) -> str:
    """What the point of these values is called: as learning_rate-0.0003__model-retnet_tiny.

    Equal values give equal names, others other ones: where a value is shortened or has characters
    that a folder's name had better not have, a mark of the whole is put behind.
    """
    short, lost, words = short_names(swept), False, []
    for key in sorted(swept):
        text = _text(swept[key])
        word = re.sub(r"[^A-Za-z0-9._-]", "_", text)
        lost |= word != text or "__" in f"_{word}_" or not _same(_reading(word), swept[key])
        words.append(f"{re.sub(r'[^A-Za-z0-9._]', '_', short[key])}-{word}")
    name = "__".join(words)
    if not lost and len(name) <= LONGEST:
        return name
    mark = hashlib.blake2b(canonical(swept).encode(), digest_size=4).hexdigest()
    return f"{name[:LONGEST]}-{mark}"


def canonical(swept: dict[str, Any]) -> str:
    """One text for equal values, 1 and 1.0 among them."""
    return json.dumps({key: _plain(value) for key, value in swept.items()}, sort_keys=True)


def _plain(value: Any) -> Any:
    """The same value with whole floats as integers, for JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{_plain(value):.6g}".replace("e+", "e")
    return value if isinstance(value, str) else json.dumps(_plain(value))


def _reading(word: str) -> Any:
    """The value that a word of a name stands for, to somebody who reads it."""
    if word in ("true", "false", "null"):
        return json.loads(word)
    try:
        return float(word)
    except ValueError:
        return word


def _same(one: Any, other: Any) -> bool:
    """Equal, and not as 1 is equal to True."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, [] where there is none; a kill may cut the last line."""
    found = []
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def state_of(folder: Path, steps: int, *, pruned: bool = False) -> str:
    """How far the run of this folder is, which is to come to that step: new, running, finished,
    pruned, stopped, killed, failed, refused or diverged."""
    if is_held(folder):
        return "running"
    events = lines_of(folder / "events.jsonl")
    if not events:
        return "new"
    ending, last = how_it_ended(folder), events[-1]
    # a finished run that is started again says "resumed", and so does one killed before its export
    if ending and last["event"] in ("finished", "resumed") and last["step"] >= steps:
        return "finished"
    if pruned:
        return "pruned"
    if ending is None:
        return "killed"
    # finished at fewer steps than are asked for now: it goes on there
    return {0: "stopped", 2: "refused", 3: "diverged"}.get(ending.code, "failed")


def objective_of(metrics: list[dict[str, Any]], metric: str = "") -> float | None:
    """The newest value of a metric among the lines of metrics.jsonl, by default of the loss on the
    first validation set; None where there is none."""
    for line in reversed(metrics):
        name = metric or next((key for key in line if re.fullmatch(r"val/.+/loss", key)), "")
        if line.get(name) is not None:
            return float(line[name])
    return None
