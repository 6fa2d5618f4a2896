"""What the fault tests share: seeded moments, and the table that is printed at their end."""

import random
from collections.abc import Callable, Iterator

import pytest

from tests.faults.table import Table

TABLE = Table()


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of a test's own, from its name and --seed: the same in whichever order and
    company it runs."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.name}")


@pytest.fixture
def record() -> Iterator[Callable[..., None]]:
    """`record(fault, survived, detail)`: one try, into the table, where `moment` may name when it
    was done. A test that lost one fails, with the details, at its end: after its other tries."""
    lost = []

    def add(fault: str, survived: bool, detail: str = "", moment: str = "") -> None:
        TABLE.add(fault, survived, moment)
        if not survived:
            lost.append(f"{fault}: {detail}")

    yield add
    assert not lost, "\n".join(["lost:", *lost])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, under everything that pytest says itself."""
    if lines := TABLE.lines():
        terminalreporter.section(f"faults, seed {terminalreporter.config.getoption('--seed')}")
        for line in lines:
            terminalreporter.write_line(line)
