"""What a sweep itself writes down, in runs/NAME/points.jsonl: which points it has, which of them it
ended, and the jobs it gave to a scheduler. How far a point is, its own folder says.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.sweep.overrides import key_of
from launch.sweep.points import Point, lines_of

FILE = "points.jsonl"
# Settings that neither decide what is learned nor how it is measured: a sweep that goes on may
# change them. `data` and what is not named here may not.
FREE = {
    *("name", "sweep", "steps", "micro_batch_size", "log_every", "evaluate_every", "save_every"),
    *("kernels", "engine", "checkpoint", "limits", "logging", "evaluation", "profile", "plan"),
}


class Record:
    """A sweep's points.jsonl; the newest line of a point counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.points: dict[str, dict[str, Any]] = {}
        """By name: overrides {key: value}, steps, settings, objective (the metric's name)."""
        self.pruned: dict[str, dict[str, Any]] = {}
        """By name: pruned (at which step), objective (the value there)."""
        self.jobs: dict[str, str] = {}
        """By name: the newest job's number."""
        for line in lines_of(folder / FILE):
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        name = str(line.get("point"))
        if "overrides" in line:
            self.points[name] = line
        elif "pruned" in line:
            self.pruned[name] = line
        elif "job" in line:
            self.jobs[name] = str(line["job"])

    def add(self, point: str, **fields: Any) -> None:
        """Appends a line about a point."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "point": point}
        self._take(line := line | fields)
        with (self.folder / FILE).open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def add_points(self, points: list[Point], objective: str) -> None:
        """Writes down the points that are new or are to come to another step."""
        for point in points:
            fields: dict[str, Any] = {"overrides": point.swept, "steps": point.steps}
            fields |= {"settings": settings(point), "objective": objective}
            old = self.points.get(point.name, {})
            if any(old.get(key) != value for key, value in fields.items()):
                self.add(point.name, **fields)

    def check(self, point: Point) -> None:
        """Raises ValueError where a run of this name was started with other settings, or by
        somebody else: its result is not that of this sweep."""
        if not (point.folder / "events.jsonl").exists():
            return
        if point.name not in self.points:
            raise ValueError(
                f"{point.folder} holds a run that this sweep did not start: take another name=... "
                "for the sweep, or move that run away"
            )
        was, now = self.points[point.name].get("settings", {}), settings(point)
        other = sorted(key for key in was | now if was.get(key) != now.get(key))
        if other:
            raise ValueError(
                f"{point.folder} was started with another {', '.join(other)}: take another "
                "name=..., or what it was started with"
            )


def settings(point: Point) -> dict[str, str]:
    """The overrides of a point that decide what it learns: a mark of each, by key. No values: an
    address may hold a password."""
    found = {}
    for text in point.overrides:
        key = key_of(text)
        if key.split(".")[0] not in FREE:
            found[key] = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return dict(sorted(found.items()))
