"""What decides a run's rows, as a digest and in words, and what a difference would mean.

A checkpoint keeps both. A run that resumes on the same parts goes on with the same rows; on others
it is told which part differs. Collecting the parts is the loader's.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

OTHER_ORDER = "documents would come in another order: some twice, some never"
MEANINGS = {
    "source": f"these are other documents, and {OTHER_ORDER}",
    "tokenizer": "token ids would mean other text",
    "sequence_length": "rows would be cut elsewhere from here on",
    "streams": OTHER_ORDER,
    "window": OTHER_ORDER,
    "order": OTHER_ORDER,
    "seed": OTHER_ORDER,
    "fraction": "documents that were trained on would be validated on",
    "packing": "rows would be made otherwise from here on, and some documents come twice",
    "longest_document": "other documents would be refused",
}
KEYS = {
    "source": "the files",
    "tokenizer": "tokenizer.path or what it was trained on",
    "window": "data.shuffle_window",
    "fraction": "data.validation_fraction or data.validation_split",
    **{key: f"data.{key}" for key in ("streams", "order", "packing", "longest_document")},
}
DEFAULTS = {"packing": "cut", "order": "source", "longest_document": 64_000_000}
"Parts that are left out where they have this value, so that older checkpoints have the same parts."
BESIDE = ("global_batch_size",)
"Kept with the parts, and no part: what it is changes no row."


class Difference(NamedTuple):
    """One thing that is not as it was."""

    text: str
    """What, from what to what."""
    meaning: str
    """What going on would mean."""
    refused: bool
    """Whether a run goes on only where data.allow_change says so."""


def digest(parts: dict[str, Any]) -> str:
    """sha256 in hexadecimal of everything that decides the rows and of nothing else."""
    kept = {key: value for key, value in parts.items() if key not in BESIDE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def without_defaults(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts less those that are what they were before there was a choice."""
    return {key: value for key, value in parts.items() if DEFAULTS.get(key, ...) != value}


def differences(old: dict[str, Any], new: dict[str, Any], position: int) -> list[Difference]:
    """What differs between a checkpoint's parts at `position` (global rows served) and a run's."""
    found = _compare(DEFAULTS | old, DEFAULTS | new, "")
    before, now = old.get("global_batch_size"), new.get("global_batch_size")
    if before is not None and before != now:
        meaning = f"the same rows go on, {now} a step; the schedule counts steps"
        found.append(Difference(f"global_batch_size {before} -> {now}", meaning, False))
    if "sources" not in old and "sources" not in new:
        return found
    if "sources" not in old or "sources" not in new:
        words = "data.sources, of which there were none" if "sources" in new else "no data.sources"
        return [*found, Difference(words, OTHER_ORDER, True)]
    for name in sorted(old["sources"].keys() | new["sources"].keys()):
        one, other = old["sources"].get(name), new["sources"].get(name)
        if one is not None and other is not None:
            found += _compare(DEFAULTS | one, DEFAULTS | other, f"{name}: ")
        elif other is None:
            found.append(Difference(f"{name} is no source any more", OTHER_ORDER, True))
    return found + _stages(old["stages"], new["stages"], position)


def _compare(old: dict[str, Any], new: dict[str, Any], owner: str) -> list[Difference]:
    found = []
    for key, meaning in MEANINGS.items():
        one, other = old.get(key), new.get(key)
        if one != other:
            words = f"{owner}{KEYS.get(key, key)} {_short(one)} -> {_short(other)}"
            found.append(Difference(words, meaning, True))
    return found


def _short(value: object) -> str:
    """A value in a sentence; of a digest, what tells it from others."""
    return value[:8] if isinstance(value, str) and len(value) == 64 else json.dumps(value)


def _stages(old: list, new: list, position: int) -> list[Difference]:
    """Differences of [[position, {name: share}], ...]."""
    if old == new:
        return []
    past = [[stage for stage in stages if stage[0] < position] for stages in (old, new)]
    later = [[stage for stage in stages if stage[0] >= position] for stages in (old, new)]
    found = []
    if past[0] != past[1]:
        words = f"the weights of rows before {position}: {stages_words(past[0])} -> "
        remedy = (
            f"rows that were served would have come from other sources; weights may change from "
            f"row {position} on, by an entry of data.stages"
        )
        found.append(Difference(words + stages_words(past[1]), remedy, True))
    if later[0] != later[1]:
        words = f"the weights from row {position} on: {stages_words(later[0])} -> "
        found.append(
            Difference(words + stages_words(later[1]), "no row that was served is touched", False)
        )
    return found


def stages_words(stages: list) -> str:
    """[[position, {name: share}], ...] as `code 0.30, web 0.70; from row 64,000: code 1.00`."""
    words = []
    for position, shares in stages:
        listed = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        words.append(f"from row {position:,}: {listed}" if position else listed)
    return "; ".join(words) or "no change"


def check_resume(
    path: Path,
    old_digest: str,
    old: dict[str, Any] | None,
    new: dict[str, Any],
    position: int,
    allow: bool,
    has_cursors: bool,
) -> list[str]:
    """What a run that resumes from `path` has to say about its data: a line for each difference.

    `old` is None for a checkpoint that keeps only the digest. ValueError for what would change the
    rows, unless `allow`; and also then for another sequence_length without cursors, since the place
    in the text could not be found.
    """
    if old is None and old_digest in ("", digest(new)):
        return []
    if old is None:
        words = "the files, tokenizer.*, data.*, seed or sequence_length (see its manifest.json)"
        found = [Difference(words, OTHER_ORDER, True)]
    else:
        found = differences(old, new, position)
    refused = [one for one in found if one.refused]
    words = "; ".join(f"{one.text} ({one.meaning})" for one in refused)
    if refused and not allow:
        raise ValueError(
            f"{path} was trained on other data: {words}. Put that back, start a new run with "
            "name=..., or say data.allow_change=true"
        )
    if old is not None and old["sequence_length"] != new["sequence_length"] and not has_cursors:
        raise ValueError(
            f"{path} has no cursors, and only they say where in the text rows of sequence_length="
            f"{new['sequence_length']} would begin: put back {old['sequence_length']}"
        )
    said = [f"data.allow_change: goes on although {words}"] if refused else []
    return said + [f"resumed with {one.text}: {one.meaning}" for one in found if not one.refused]
