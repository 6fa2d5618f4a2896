"""What a run wrote about itself, read back: the lines of its folder as numbers, places and words.

It reads JSON lines and config.yaml and nothing else, so that it works on another machine, while the
run still goes on, and on half a run. What is drawn of it is curves.py's and context.py's.
"""

import math
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from retnet.training.lines import read_lines


class RunRecord(NamedTuple):
    """All that a run folder says."""

    name: str
    "Of the run: its folder below runs/."
    folder: Path
    config: dict[str, Any]
    "config.yaml; {} where there is none yet."
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    "Texts, curves and grids, each with `step` and `kind`."


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder, finished or not.

    Raises:
        ValueError: the folder holds no run, or its config is no YAML.
    """
    metrics, events = folder / "metrics.jsonl", folder / "events.jsonl"
    if not metrics.exists() and not events.exists():
        raise ValueError(f"{folder} holds no run: it has neither metrics.jsonl nor events.jsonl")
    file = folder / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text()) if file.exists() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: mend it, or take it away") from error
    config = config if isinstance(config, dict) else {}
    evaluations = read_lines(folder / "evaluations.jsonl")
    name = str(config.get("name") or folder.resolve().name)
    return RunRecord(name, folder, config, read_lines(metrics), read_lines(events), evaluations)


def named_apart(records: list[RunRecord]) -> list[RunRecord]:
    """The same records, those of one name under their folders', so that each is its own."""
    names = [record.name for record in records]
    return [
        record._replace(name=str(record.folder)) if names.count(record.name) > 1 else record
        for record in records
    ]


def sweep_of(records: list[RunRecord]) -> str:
    """The sweep whose points all of them are; "" where it is one run, or they are none's."""
    sweeps = {record.name.rpartition("/")[0] for record in records}
    return sweeps.pop() if len(sweeps) == 1 and len(records) > 1 else ""


def series(record: RunRecord, key: str) -> tuple[list[int], list[float]]:
    """The steps and the finite values of a metric, in the order of the steps; one value a step."""
    values = {
        line["step"]: float(line[key])
        for line in record.metrics
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    }
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def last(record: RunRecord, key: str) -> float | None:
    """The newest value of a metric."""
    _, values = series(record, key)
    return values[-1] if values else None


def tokens_at(record: RunRecord, steps: list[int]) -> list[float]:
    """Tokens that all ranks had trained on after those steps: counted where the run wrote the
    count, straight lines between, and by the batch's size where it wrote none."""
    known, counts = series(record, "tokens")
    if not known:
        size = record.config.get("global_batch_size", 1) * record.config.get("sequence_length", 1)
        return [float(step * size) for step in steps]
    pace = counts[-1] / max(known[-1], 1)
    inside = np.interp(steps, [0, *known], [0.0, *counts])
    return [
        float(value) if step <= known[-1] else counts[-1] + pace * (step - known[-1])
        for step, value in zip(steps, inside, strict=True)
    ]


def validation_sets(record: RunRecord) -> list[str]:
    """Names of the validation sets, in the order in which the run wrote them."""
    return names_between(record, "val/", "/loss")


def names_between(record: RunRecord, head: str, tail: str) -> list[str]:
    """What stands between `head` and `tail` in the names of metrics, each once, in their order."""
    found: dict[str, None] = {}
    for line in record.metrics:
        for key in line:
            if key.startswith(head) and key.endswith(tail) and len(key) > len(head + tail):
                found[key[len(head) : len(key) - len(tail)]] = None
    return list(found)


def details(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    """The entries of one kind in evaluations.jsonl, oldest first."""
    found = [entry for entry in record.evaluations if entry.get("kind") == kind]
    return sorted(found, key=lambda entry: entry["step"])


def last_step(record: RunRecord) -> int:
    """The last step that anything says was taken."""
    steps = [line["step"] for line in record.metrics] + [
        event["step"] for event in record.events if isinstance(event.get("step"), int)
    ]
    return max(steps, default=0)


ENDINGS = ("finished", "stopped", "failed", "diverged", "hung")


def state_of(record: RunRecord) -> str:
    """How the run stands, in one sentence."""
    step, of = last_step(record), record.config.get("steps")
    where = f"step {step:,}" + (f" of {of:,}" if of else "")
    newest = record.events[-1] if record.events else {}
    kind, why = newest.get("event"), str(newest.get("why") or "").rstrip(".")
    told = f": {why}" if why else ""
    if kind == "finished" or (kind == "resumed" and of and step >= of):
        return f"Finished at step {step:,}."
    if kind == "stopped":
        return f"Stopped and saved at {where}{f' ({why})' if why else ''}."
    if kind == "diverged":
        return f"Diverged at {where}{told}."
    if kind in ("failed", "hung"):
        return f"{'Failed' if kind == 'failed' else 'Hung'} at {where}{told}."
    return f"At {where}: it is running, or was killed."


def seconds_of(record: RunRecord) -> float:
    """The time between first and last event of each session (a start to its end), added up; a
    session that was killed counts up to the last thing it told."""
    total, began, newest = 0.0, None, None
    for event in record.events:
        now = _time(event)
        if now is None:
            continue
        if event["event"] in ("started", "resumed") or began is None:
            if began is not None:
                total += newest - began
            began = now
        newest = now
    return total + (newest - began if began is not None else 0.0)


def _time(event: dict[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def environments(record: RunRecord) -> list[tuple[str, dict[str, Any]]]:
    """("step N", its environment) for each session that had another one than the session before."""
    found: list[tuple[str, dict[str, Any]]] = []
    for event in record.events:
        words = event.get("environment")
        if isinstance(words, dict) and words and (not found or found[-1][1] != words):
            found.append((f"from step {event.get('step', 0):,}", words))
    return found


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots: {"model": {"num_heads": 3}} -> {"model.num_heads": 3}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
