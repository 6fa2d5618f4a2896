"""The state of a run survives being written down."""

import json

import pytest

from retnet.training.state import TrainState


def test_a_state_comes_back_from_json_as_it_was() -> None:
    state = TrainState(step=3, position=96, tokens=2**40, data_fingerprint="abc")
    assert TrainState.from_dict(json.loads(json.dumps(state.as_dict()))) == state


def test_a_state_with_a_missing_or_unknown_value_is_refused() -> None:
    values = TrainState().as_dict()
    with pytest.raises(RuntimeError, match="this version needs"):
        TrainState.from_dict(values | {"epoch": 1})
    del values["step"]
    with pytest.raises(RuntimeError, match="this version needs"):
        TrainState.from_dict(values)
