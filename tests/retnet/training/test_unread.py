"""Steps are read late and all at once, and nothing is lost by it."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from retnet.training.layer_norms import Norms
from retnet.training.metrics import Metrics
from retnet.training.sinks import LoggingConfig, WandbMode
from retnet.training.stability import Limits, Mode, StabilityConfig
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, QueuedStep
from retnet.training.unread import MAX_UNREAD, UnreadSteps

ENGINE = SimpleNamespace(fp16_enabled=lambda: True, device=torch.device("cpu"))
LIMITS = Limits(*(torch.tensor(value, dtype=torch.float64) for value in (4.0, 2.0, 3.0, 1.0)))
NAN = float("nan")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A group of processes with one member, this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def unread_steps(folder: Path, config: StabilityConfig, console: io.StringIO) -> UnreadSteps:
    """Of a float16 engine; its events lie in `folder`."""
    said = {"console": console, "total_steps": 9, "run_name": "run", "resolved_config": {}}
    metrics = Metrics(folder, LoggingConfig(wandb=WandbMode.off), rank=0, **said)
    return UnreadSteps(ENGINE, metrics, config)


@pytest.fixture
def unread(tmp_path: Path) -> UnreadSteps:
    """With stability.mode=off."""
    return unread_steps(tmp_path, StabilityConfig(mode=Mode.off), io.StringIO())


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


def test_norms_have_a_line_at_their_own_step_also_where_the_run_ends_there(
    unread: UnreadSteps, tmp_path: Path
) -> None:
    state, values = TrainState(), torch.tensor([1.0, 2.0, NAN], dtype=torch.float64)
    norms = Norms({"embedding": 0, "layer.00": 1}, {"layer.00": 2}, values)
    for step in range(3):
        loss = NAN if step == 2 else 1.0
        unread.add(replace(_queued(step, loss=loss), norms=norms if step > 0 else None), state)
    with pytest.raises(NonFiniteError):
        unread.read(state)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {"grad_norm/embedding": 1.0, "grad_norm/layer.00": 2.0, "activation_rms/layer.00": None}
    assert lines == [{"step": 2} | found, {"step": 3} | found]


def _judged(step: int, loss: float = 2.0, norm: float = 0.5) -> QueuedStep:
    """One that was judged by LIMITS."""
    mean = torch.tensor(loss, dtype=torch.float64)
    return replace(_queued(step, loss, norm), mean=mean, limits=LIMITS)


def test_a_refused_step_is_told_counted_and_gone_on_from(tmp_path: Path) -> None:
    """Of either kind; those that are not finite are strikes, and so few of them end nothing."""
    console, state = io.StringIO(), TrainState()
    skips = unread_steps(tmp_path, StabilityConfig(window=8, strikes=2), console)
    skips.begin(state)
    for queued in (_judged(0), _judged(1, NAN), _judged(2, 9.0), _judged(3, norm=7.0), _judged(4)):
        skips.add(queued, state)
    measured = skips.read(state)
    assert (measured["loss"], measured["skipped_steps"]) == (2.0, 3)
    assert (state.tokens, state.skipped, state.strikes) == (50, 3, [1])
    events = _events(tmp_path)
    assert [(event["event"], event["step"], event["count"]) for event in events] == [
        ("skipped", step, step) for step in (1, 2, 3)
    ]
    whys = [event["why"] for event in events]
    assert whys[0] == "the loss on rank 0 is nan"
    assert whys[1] == "the loss 9 is above 4 (median 2)"
    assert whys[2] == "the gradient's norm 7 is above 3 (median 1)"
    assert [f"step {step} is skipped: {why}" for step, why in enumerate(whys, 2)] == [
        line for line in console.getvalue().splitlines() if "skipped" in line
    ]


def test_too_many_steps_that_are_not_finite_end_the_run_and_spikes_do_not(tmp_path: Path) -> None:
    skips = unread_steps(tmp_path, StabilityConfig(window=8, strikes=2), io.StringIO())
    state = TrainState()
    skips.begin(state)
    for step, loss in ((0, NAN), (8, NAN), (9, 9.0), (10, 9.0)):  # the first counts no more
        skips.add(_judged(step, loss), state)
    skips.read(state)
    assert state.strikes == [8]
    skips.add(_judged(11, NAN), state)
    with pytest.raises(NonFiniteError, match="^step 12: .*such steps: 2 of the last 8"):
        skips.read(state)
    assert _events(tmp_path)[-1]["event"] == "diverged"


def test_going_back_is_left_to_the_loop_and_every_refused_step_is_a_strike(tmp_path: Path) -> None:
    config = StabilityConfig(mode=Mode.rollback, window=8, strikes=2)
    rolls, state = unread_steps(tmp_path, config, io.StringIO()), TrainState()
    rolls.begin(state)
    for step, loss in enumerate((2.0, NAN, 9.0, NAN)):
        rolls.add(_judged(step, loss), state)
    rolls.read(state)
    assert state.strikes == [1, 2, 3]


def test_the_window_comes_from_the_state_and_goes_into_it(tmp_path: Path) -> None:
    recent = {"losses": [2.0, 2.5], "norms": [1.0, 1.5]}
    skips, state = unread_steps(tmp_path, StabilityConfig(), io.StringIO()), TrainState()
    state.recent = recent
    skips.begin(state)
    assert skips.stability is not None and skips.stability.recent() == recent
    skips.stability.add(torch.tensor(3.0), torch.tensor(NAN))
    skips.read(state)
    assert state.recent == {"losses": [2.0, 2.5, 3.0], "norms": [1.0, 1.5]}
