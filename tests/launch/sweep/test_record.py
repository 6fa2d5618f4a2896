"""A sweep's own file: the newest line counts, and a point of other settings is not this sweep's."""

from pathlib import Path

import pytest

from launch.sweep.points import Point
from launch.sweep.record import Record


def point(folder: Path, *overrides: str, steps: int = 9) -> Point:
    return Point("seed-1", folder / "seed-1", ["seed=1", *overrides], {"seed": 1}, steps)


def test_the_newest_line_of_a_point_counts_and_an_equal_one_is_not_written(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for steps in (9, 9, 12):
        record.add_points([point(tmp_path, steps=steps)], "")
    record.add("seed-1", pruned=6, objective=2.0)
    record.add("seed-1", job="7")
    record.add("seed-1", job="8")
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 5
    for one in (record, Record(tmp_path)):
        assert one.points["seed-1"]["steps"] == 12
        assert one.points["seed-1"]["overrides"] == {"seed": 1}
        assert one.pruned["seed-1"]["objective"] == 2.0 and one.jobs == {"seed-1": "8"}


def test_a_started_point_of_other_settings_is_refused_by_the_names_of_the_keys(
    tmp_path: Path,
) -> None:
    address = "data.data_files=[s3://user:secret@store/a]"
    record = Record(tmp_path)
    first = point(tmp_path, address, "optimizer.weight_decay=0.1", "logging.wandb=off")
    record.add_points([first], "")
    other = point(tmp_path, address, "model=nucleus_x_tiny")
    record.check(other)  # not started: nothing has come of it
    first.folder.mkdir()
    (first.folder / "events.jsonl").write_text('{"event": "failed", "code": 2}')
    Record(tmp_path).check(other)  # refused: neither has of this
    (first.folder / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"another model, optimizer\.weight_decay: take another"):
        Record(tmp_path).check(other)
    with pytest.raises(ValueError, match=r"seed-1 was started with another model, optimizer\."):
        new = other._replace(name="seed-2", folder=tmp_path / "seed-2", swept={"seed": 2})
        Record(tmp_path).check(new)  # its row would stand beside that of another model
    with pytest.raises(ValueError, match=r"is a sweep of seed, and this one sweeps steps: take"):
        Record(tmp_path).check(new._replace(swept={"steps": 2}))
    with pytest.raises(ValueError, match="another data.data_files, engine.dtype"):
        Record(tmp_path).check(point(tmp_path, "optimizer.weight_decay=0.1", "engine.dtype=auto"))
    free = ["name=elsewhere", "steps=20", "logging.wandb=offline", "engine=zero0"]
    Record(tmp_path).check(point(tmp_path, "optimizer.weight_decay=0.1", *free, address))
    with pytest.raises(ValueError, match=r"seed-1 holds a run that this sweep did not start"):
        Record(tmp_path / "another").check(other)
    assert "secret" not in (tmp_path / "points.jsonl").read_text()
