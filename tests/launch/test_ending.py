"""A run's last word decides whether it is started again."""

import json
from pathlib import Path

import pytest

from launch.ending import AGAIN, events_written, how_it_ended, main


def written(folder: Path, *events: dict) -> Path:
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return folder


STARTED = {"event": "started", "step": 0, "of": 9}
ENDINGS = [
    ({"event": "finished", "step": 9}, 0, 0),
    ({"event": "stopped", "step": 4, "why": "SIGTERM"}, 0, 0),
    ({"event": "stopped", "step": None, "why": "SIGTERM"}, 0, 0),
    ({"event": "stopped", "step": 4, "why": "SIGUSR1"}, 0, AGAIN),
    ({"event": "stopped", "step": 4, "why": "wall clock"}, 0, AGAIN),
    ({"event": "stopped", "step": 4, "why": "the deepspeed command ended"}, 0, 0),
    ({"event": "failed", "code": 2, "why": "no such data"}, 2, 2),
    ({"event": "failed", "code": 3, "why": "not finite"}, 3, 3),
    ({"event": "failed", "code": 1, "why": "a cable"}, 1, AGAIN),
    ({"event": "hung", "step": 4}, 4, AGAIN),
]


@pytest.mark.parametrize("event, code, advice", ENDINGS)
def test_the_last_event_says_how_a_run_ended_and_what_to_do(
    event: dict, code: int, advice: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    written(tmp_path, STARTED, {"event": "saved", "step": 4}, event)
    ending = how_it_ended(tmp_path)
    assert ending is not None and ending.code == code
    assert event.get("why", "") in ending.why
    assert ("saved" in ending.why) == (event["event"] == "stopped" and event["step"] is not None)
    assert main([str(tmp_path)]) == advice
    assert f"code {code}" in capsys.readouterr().out


def test_a_run_that_was_killed_has_no_last_word(tmp_path: Path) -> None:
    assert how_it_ended(tmp_path) is None and main([str(tmp_path)]) == AGAIN
    written(tmp_path, STARTED, {"event": "saved", "step": 4})
    assert how_it_ended(tmp_path) is None and main([str(tmp_path)]) == AGAIN
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "fini')  # cut by the kill
    assert how_it_ended(tmp_path) is None


def test_the_ending_of_an_earlier_session_is_not_this_ones(tmp_path: Path) -> None:
    written(tmp_path, STARTED, {"event": "stopped", "step": 4, "why": "SIGTERM"})
    since = events_written(tmp_path)
    assert how_it_ended(tmp_path, since) is None
    written(tmp_path, {"event": "resumed", "step": 4, "of": 9})
    assert how_it_ended(tmp_path, since) is None
    written(tmp_path, {"event": "failed", "code": 1, "why": "a cable"})
    ending = how_it_ended(tmp_path, since)
    assert ending is not None and ending.why == "a cable"


def test_a_run_is_finished_only_where_it_says_so(tmp_path: Path) -> None:
    """Killed after its last save, it begins again at its last step, with its export to come."""
    resumed, finished = {"event": "resumed", "step": 9, "of": 9}, {"event": "finished", "step": 9}
    written(tmp_path, STARTED, {"event": "saved", "step": 9}, resumed)
    assert how_it_ended(tmp_path) is None and main([str(tmp_path)]) == AGAIN
    written(tmp_path, finished)
    since = events_written(tmp_path)
    written(tmp_path, resumed)
    ending = how_it_ended(tmp_path, since)
    assert ending is not None and ending.code == 0 and main([str(tmp_path)]) == 0
    written(tmp_path, resumed | {"of": 20})
    assert how_it_ended(tmp_path) is None
