"""What became of a save reaches the events, and the console where it matters."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from retnet.training.metrics import Metrics
from retnet.training.news import tell_of_saves
from retnet.training.saver import CheckpointConfig, News, OnFailure
from retnet.training.sinks import LoggingConfig, WandbMode

FAILED = News("save_failed", 4, "c/4", "No space left on device; step-00000002 stands", 0.5, 0.25)
COPY_FAILED = News("copy_failed", 2, "c/2", "403 Forbidden", 1.5)
TOLD = [News("saved", 2, "c/2", "", 0.12345, 0.01234), COPY_FAILED, FAILED]


def told(folder: Path, mode: OnFailure, *news: News) -> tuple[str | None, list[dict], str]:
    """The reason to stop, the events and the console's text."""
    console = io.StringIO()
    said = {"console": console, "total_steps": 9, "run_name": "run", "resolved_config": {}}
    metrics = Metrics(folder, LoggingConfig(wandb=WandbMode.off), rank=0, **said)
    saver = SimpleNamespace(news=lambda: list(news))
    reason = tell_of_saves(saver, metrics, CheckpointConfig(on_failure=mode))
    lines = (folder / "events.jsonl").read_text().splitlines() if news else []
    return reason, [json.loads(line) for line in lines], console.getvalue()


def test_every_news_is_an_event_and_only_faults_are_said(tmp_path: Path) -> None:
    reason, events, said = told(tmp_path, OnFailure.go_on, *TOLD)
    assert reason is None
    assert [(event["event"], event["step"]) for event in events] == [
        (news.kind, news.step) for news in TOLD
    ]
    assert (events[0]["seconds"], events[0]["stall"], events[0]["path"]) == (0.123, 0.012, "c/2")
    assert "why" not in events[0] and events[1]["why"] == COPY_FAILED.why
    assert "step 2 could not be copied: 403 Forbidden; it stands here" in said
    assert "step 4 could not be saved: No space" in said and "tried again" in said
    assert len(said.strip().splitlines()) == 2


@pytest.mark.parametrize("kind", ["saved", "copied", "copy_failed", "save_failed"])
def test_a_run_stops_for_a_save_that_failed_and_only_if_it_was_told_to(
    kind: str, tmp_path: Path
) -> None:
    news = FAILED._replace(kind=kind)
    reason, _, said = told(tmp_path / "stop", OnFailure.stop, news)
    assert (reason is not None) == (kind == "save_failed")
    if reason:
        assert FAILED.why in reason and "the run stops (checkpoint.on_failure=stop)" in said
    assert told(tmp_path / "go on", OnFailure.go_on, news)[0] is None


def test_without_news_nothing_is_told(tmp_path: Path) -> None:
    assert told(tmp_path, OnFailure.stop) == (None, [], "")
