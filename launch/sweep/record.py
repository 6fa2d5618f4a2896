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
        """Raises ValueError where the run of this name is somebody else's, or a point of this sweep
        has begun with other settings: their results are not to be compared."""
        if point.name not in self.points and has_begun(point.folder):
            raise ValueError(
                f"{point.folder} holds a run that this sweep did not start: take another name=... "
                "for the sweep, or move that run away"
            )
        now = settings(point)
        for name, line in self.points.items():
            if not has_begun(self.folder / name):
                continue
            if line["overrides"].keys() != point.swept.keys():
                raise ValueError(
                    f"{self.folder} is a sweep of {', '.join(line['overrides'])}, and this one "
                    f"sweeps {', '.join(point.swept)}: take another name=..."
                )
            was = line.get("settings", {})
            other = {key for key in was | now if was.get(key) != now.get(key)} - point.swept.keys()
            if other:
                raise ValueError(
                    f"{self.folder / name} was started with another {', '.join(sorted(other))}: "
                    "take another name=..., or what it was started with"
                )


def has_begun(folder: Path) -> bool:
    """Whether a run came to its first step there: one that was refused before has no result, and
    may be started with other settings."""
    return (folder / "config.yaml").exists()


def settings(point: Point) -> dict[str, str]:
    """The overrides of a point that decide what it learns: a mark of each, by key. No values: an
    address may hold a password."""
    found = {}
    for text in point.overrides:
        key = key_of(text)
        if key.split(".")[0] not in FREE or key == "engine.dtype":
            found[key] = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return dict(sorted(found.items()))
