"""A run goes back to before what spoilt it, no further than it must, and as often as it may."""

import json
from pathlib import Path
from typing import Any

import pytest

from retnet.training.rollback import struck_out
from retnet.training.stability import Mode, StabilityConfig
from retnet.training.state import TrainState
from tests.retnet.training.processes import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's."""
    return tmp_path_factory.mktemp("back")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What came of going back from step 7, where there are checkpoints of 2, 4 and 6."""
    return run("rolled_back", 1, folder, module="workers_steps")[0]


def test_so_many_strikes_send_a_run_back_and_only_in_that_mode() -> None:
    for mode in Mode:
        config = StabilityConfig(mode=mode, strikes=2)
        assert not struck_out(TrainState(strikes=[4]), config)
        assert struck_out(TrainState(strikes=[4, 5]), config) == (mode is Mode.rollback)


@pytest.mark.parametrize(("case", "to"), [("kept", 4), ("first not kept", 6)])
def test_it_goes_back_to_before_the_first_strike_or_else_the_last(
    found: dict[str, Any], case: str, to: int
) -> None:
    """Weights and state are those of then, but for the place in the data, where reading stands."""
    seen = found[case]
    assert seen["error"] == "" and seen["weights of"] == [to]
    state = seen["state"]
    assert (state.step, state.tokens, state.recent["losses"]) == (to, 10 * to, [float(to)])
    assert (state.position, state.strikes) == (56, [])
    assert state.rollbacks == (1 if case == "kept" else 2)


@pytest.mark.parametrize(
    ("case", "why"),
    [("none", "there is no checkpoint from before"), ("too often", "the run went back 3 times")],
)
def test_where_it_cannot_it_ends_and_nothing_is_loaded(
    found: dict[str, Any], case: str, why: str
) -> None:
    seen = found[case]
    assert why in seen["error"] and "steps were refused" in seen["error"]
    assert not seen["moved"] and seen["state"].step == 7 and seen["state"].strikes


def test_what_happened_is_in_the_events(found: dict[str, Any], folder: Path) -> None:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = ["rolled_back", "rolled_back", "diverged", "diverged"]
    assert [event["event"] for event in events] == kinds
    assert [event["step"] for event in events] == [7] * 4
    assert (events[0]["to"], events[0]["passed_over"]) == (4, [32, 55])
    assert "the first of them step 5" in events[0]["why"]


def test_later_checkpoints_are_forgotten(found: dict[str, Any]) -> None:
    assert found["left"] == ["step-00000004", "step-00000002"]
