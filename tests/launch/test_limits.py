"""What a run may take is not less than nothing."""

import pytest

from launch.limits import LimitsConfig


@pytest.mark.parametrize("key", ["wall_clock", "hang"])
def test_a_limit_is_nothing_or_more(key: str) -> None:
    assert getattr(LimitsConfig(**{key: 0.0}), key) == 0.0, "0 is for ever"
    with pytest.raises(ValueError, match=f"limits.{key} is -1.0; it must be 0 or more"):
        LimitsConfig(**{key: -1.0})
