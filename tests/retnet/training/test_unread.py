"""Steps are read late and all at once, and nothing is lost by it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from retnet.training.metrics import Metrics
from retnet.training.sinks import LoggingConfig, WandbMode
from retnet.training.stability import Mode, StabilityConfig
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, QueuedStep
from retnet.training.unread import MAX_UNREAD, UnreadSteps

ENGINE = SimpleNamespace(fp16_enabled=lambda: True)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A group of processes with one member, this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def unread(tmp_path: Path) -> UnreadSteps:
    """Of a float16 engine; its events lie in `tmp_path`."""
    config = LoggingConfig(wandb=WandbMode.off)
    said = {"console": io.StringIO(), "total_steps": 9, "run_name": "run", "resolved_config": {}}
    metrics = Metrics(tmp_path, config, rank=0, **said)
    return UnreadSteps(ENGINE, metrics, StabilityConfig(mode=Mode.off))


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def _queued(step: int, loss: float = 2.0, norm: float = 0.5, skipped: bool = False) -> QueuedStep:
    batches = [{"shift_labels": torch.zeros(1, 4)}] * 2
    numbers = torch.tensor(2 * loss, dtype=torch.float64), torch.tensor(norm), torch.tensor(10)
    return QueuedStep(*numbers, skipped, step, 0.1 / (step + 1), 0, batches)


def test_tokens_count_when_read_and_the_last_step_is_logged(unread: UnreadSteps) -> None:
    state = TrainState()
    for step in range(3):
        unread.add(_queued(step, loss=step), state)
    assert state.tokens == 0
    last = {"tokens": 30, "learning_rate": 0.1 / 3, "loss": 2.0, "grad_norm": 0.5}
    assert unread.read(state) == last
    assert unread.read(state) == last and state.tokens == 30


def test_nothing_is_read_before_the_first_step(unread: UnreadSteps) -> None:
    assert unread.read(TrainState()) == {}


def test_too_many_unread_steps_are_read(unread: UnreadSteps) -> None:
    state = TrainState()
    for step in range(MAX_UNREAD):
        assert state.tokens == 0
        unread.add(_queued(step), state)
    assert state.tokens == 10 * MAX_UNREAD


def test_a_skipped_step_is_read_at_once_and_noted(unread: UnreadSteps, tmp_path: Path) -> None:
    state = TrainState()
    unread.add(_queued(0), state)
    unread.add(_queued(1, norm=float("inf"), skipped=True), state)
    assert state.tokens == 20
    (event,) = _events(tmp_path)
    assert (event["event"], event["step"]) == ("skipped", 1)


def test_the_first_bad_step_is_reported_under_its_own_number(
    unread: UnreadSteps, tmp_path: Path
) -> None:
    state = TrainState()
    for step in range(6):
        unread.add(_queued(step, loss=float("nan") if step in (3, 4) else 1.0), state)
    with pytest.raises(NonFiniteError, match="^step 4: the loss on rank 0 is nan; no weight"):
        unread.read(state)
    (event,) = _events(tmp_path)
    assert (event["event"], event["step"]) == ("diverged", 3)
