"""A run folder is read as it stands: finished, half, torn, without a config."""

import json

import pytest

from retnet.report.reading import (
    environments,
    flat,
    last_step,
    named_apart,
    names_between,
    read_run,
    seconds_of,
    series,
    state_of,
    tokens_at,
)
from tests.retnet.report.written import LENGTH, ROWS, write_run


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)


def test_a_torn_last_line_and_a_missing_config_cost_nothing_else(tmp_path):
    folder = write_run(tmp_path / "run", steps=40)
    whole = read_run(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    (folder / "config.yaml").unlink()
    torn = read_run(folder)
    assert torn.metrics == whole.metrics and torn.events == whole.events
    assert torn.name == "run"


def test_a_series_is_ordered_finite_and_has_one_value_a_step(tmp_path):
    lines = [(3, 1.0), (1, 5.0), (2, None), (3, 2.0), (4, "high")]
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in lines)
    )
    assert series(read_run(tmp_path), "loss") == ([1, 3], [5.0, 2.0])


def test_tokens_are_those_that_were_counted_and_grow_between_and_beyond(tmp_path):
    record = read_run(write_run(tmp_path / "run", steps=40))
    size = LENGTH * ROWS
    assert tokens_at(record, [0, 5, 7, 40, 80]) == [0, 5 * size, 7 * size, 40 * size, 80 * size]
    uncounted = record._replace(metrics=[{"step": 5, "loss": 1.0}])
    assert tokens_at(uncounted, [5]) == [5 * size]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([{"event": "finished", "step": 40}], "Finished at step 40."),
        ([{"event": "resumed", "step": 40, "of": 40}], "Finished at step 40."),
        ([{"event": "stopped", "step": 40, "why": "SIGTERM"}], "Stopped and saved"),
        ([{"event": "diverged", "step": 40, "why": "nan."}], "Diverged at step 40 of 40: nan."),
        ([{"event": "hung", "why": "rank 1"}], "Hung at step 40 of 40: rank 1."),
        ([{"event": "failed", "code": 1, "why": "no disk"}], "Failed at step 40 of 40: no disk."),
        ([{"event": "saved", "step": 40}], "it is running, or was killed"),
        ([], "it is running, or was killed"),
    ],
)
def test_the_last_event_says_how_it_stands(tmp_path, events, words):
    record = read_run(write_run(tmp_path / "run", steps=40))._replace(events=events)
    assert words in state_of(record)


def test_time_between_sessions_is_not_counted(tmp_path):
    record = read_run(write_run(tmp_path / "run", steps=40))
    times = [("started", "08:00"), ("saved", "08:10"), ("resumed", "20:00"), ("finished", "20:05")]
    events = [{"event": kind, "time": f"2026-01-01T{time}:00+00:00"} for kind, time in times]
    assert seconds_of(record._replace(events=events)) == 15 * 60
    assert seconds_of(record._replace(events=[])) == 0


def test_an_environment_is_told_again_where_it_changed(tmp_path):
    record = read_run(write_run(tmp_path / "run", steps=40))
    assert [words["ranks"] for _, words in environments(record)] == [2, 4]
    same = [event for event in record.events if event["event"] != "resumed"]
    assert len(environments(record._replace(events=same + same))) == 1


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    records = [read_run(write_run(tmp_path / place / "run", steps=40)) for place in "ab"]
    first, second = named_apart(records)
    assert first.name != second.name
    assert first.name == str(tmp_path / "a" / "run")
    assert named_apart(records[:1]) == records[:1]


def test_names_are_found_in_the_middle_of_metrics(tmp_path):
    record = read_run(write_run(tmp_path / "run", steps=400))
    assert names_between(record, "position/", "/loss") == ["1x", "2x", "4x", "8x"]
    assert names_between(record, "tasks/", "") == ["copying/acc"]
    assert last_step(record) == 400


def test_a_flat_config_has_every_leaf_once():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flat(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "f": {}}
