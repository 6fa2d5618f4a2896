"""Both architectures are asked."""

import pytest


@pytest.fixture(params=["retnet", "nucleus_x"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param
