"""The table is what the folders hold, the best point first."""

import csv
import json
from pathlib import Path
from typing import Any

from launch.sweep.__main__ import main
from launch.sweep.points import Point
from launch.sweep.record import Record
from launch.sweep.table import as_text, rows

LINES = [
    {"step": 1, "loss": 5.0, "tokens_per_second": 100.0},
    {"step": 2, "loss": 4.0, "tokens_per_second": 300.0},
    {"step": 3, "loss": 3.0, "tokens_per_second": 200.0},
]


def swept(folder: Path, points: dict[str, tuple[dict[str, Any], list[dict]]]) -> None:
    """Writes a sweep: by name, the swept values and the lines of metrics.jsonl."""
    folder.mkdir(parents=True)
    record = Record(folder)
    for name, (values, lines) in points.items():
        record.add_points([Point(name, folder / name, [], values, 3)], "")
        if lines:
            (folder / name).mkdir()
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / name / "metrics.jsonl").write_text(text)
            (folder / name / "events.jsonl").write_text('{"event": "finished", "step": 3}\n')


def three(folder: Path) -> None:
    swept(
        folder,
        {
            "worse": ({"optimizer.learning_rate": 0.1}, [*LINES, {"step": 3, "val/a/loss": 4.5}]),
            "waits": ({"optimizer.learning_rate": 0.3}, []),
            "best": (
                {"optimizer.learning_rate": 2e-05, "model": "retnet_tiny"},
                [*LINES, {"step": 3, "val/a/loss": 2.5}],
            ),
        },
    )


def test_points_are_sorted_by_the_objective_and_those_without_come_last(tmp_path: Path) -> None:
    three(tmp_path / "s")
    found = rows(tmp_path / "s")
    assert [row.point for row in found] == ["best", "worse", "waits"]
    assert [row.state for row in found] == ["finished", "finished", "new"]
    assert found[0].objective == 2.5 and found[0].loss == 3.0 and found[0].step == 3
    assert found[0].tokens_per_second == 200.0
    assert found[2].objective is found[2].loss is found[2].step is None


def test_a_point_too_short_for_a_logged_loss_says_how_far_it_came(tmp_path: Path) -> None:
    swept(tmp_path / "s", {"short": ({"seed": 1}, [{"step": 3, "val/a/loss": 4.5}])})
    (row,) = rows(tmp_path / "s")
    assert (row.step, row.loss, row.objective) == (3, None, 4.5)


def test_a_line_of_the_table_is_a_point(tmp_path: Path) -> None:
    three(tmp_path / "s")
    lines = as_text(rows(tmp_path / "s"), "val loss").splitlines()
    assert lines[0].split("  ")[0] == "model" and lines[0].endswith("state")
    assert lines[2].split() == "retnet_tiny 2e-05 3 of 3 3.0000 2.5000 200 finished".split()
    assert lines[4].split() == ["0.3", "new"] and len(lines) == 5


def test_the_command_prints_it_and_writes_csv_and_a_picture(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    three(tmp_path / "runs" / "s")
    monkeypatch.chdir(tmp_path)
    assert main(["table", "s"]) == 0
    said = capsys.readouterr().out
    assert said.index("2e-05") < said.index("0.1 ")
    assert "best: runs/s/best\n" in said and "runs/s/table.csv" in said
    with Path("runs/s/table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["point"] for line in lines] == ["best", "worse", "waits"]
    assert float(lines[0]["optimizer.learning_rate"]) == 2e-05
    assert float(lines[1]["objective"]) == 4.5 and lines[2]["objective"] == ""
    assert Path("runs/s/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert main(["table", "runs/s"]) == main(["table", f"{tmp_path}/runs/s/"]) == 0
    assert main(["table", "t"]) == 2
    assert "runs/t holds no sweep; there is runs/s" in capsys.readouterr().err
    Path("runs/t").mkdir()
    Path("runs/t/points.jsonl").touch()  # all that a full disk took
    assert main(["table", "t"]) == 2
