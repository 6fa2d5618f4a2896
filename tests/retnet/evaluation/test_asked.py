"""Whoever asks, how many share the work and how the engine keeps its weights: the answers are the
same, and training is what it would have been."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.retnet.evaluation.local_tasks import write_tasks
from tests.retnet.evaluation.questions import Letters, asked_of
from tests.retnet.training.processes import run

MODULE = "tests.retnet.evaluation.workers"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, Any]]:
    """Two ranks, at every stage."""
    folder = tmp_path_factory.mktemp("two")
    tasks = str(write_tasks(folder / "tasks"))
    settings = dict(stages=[0, 1, 2, 3], tasks=tasks, often=True)
    return run("questions", 2, folder, module=MODULE, **settings)


def test_training_is_bit_for_bit_what_it_is_without_questions(ranks: list[dict[int, Any]]) -> None:
    for found in ranks:
        for stage, engine in found.items():
            asked, not_asked = engine["steps"][True], engine["steps"][False]
            assert asked[0] == not_asked[0] and len(asked[0]) == 2, stage
            assert asked[2:] == not_asked[2:] and asked[3], stage
            assert asked[4] == [True] * 4, "a request to stop ends every kind"
            for name, weight in (asked[1] or {}).items():
                assert torch.equal(weight, not_asked[1][name]), (stage, name)


def test_every_stage_and_number_of_ranks_gives_the_same_answers(
    ranks: list[dict[int, Any]], tmp_path: Path
) -> None:
    """To 1e-5: sums of float32 in another order, where weights lie in other pieces."""
    settings = dict(stages=[1], tasks=str(write_tasks(tmp_path / "tasks")), often=False)
    alone = run("questions", 1, tmp_path, module=MODULE, **settings)[0][1]["said"]
    assert set(alone) == {"samples", "positions", "passkey", "tasks"}
    names = {name.split("/")[0] for values, *_ in alone.values() for name in values}
    assert names == {"position", "passkey", "tasks"}
    for found in ranks:
        for stage, engine in found.items():
            for kind, answer in engine["said"].items():
                assert_close(answer, alone[kind], f"stage {stage}, {kind}")


def assert_close(found: Any, wanted: Any, where: str) -> None:
    """Equal, numbers to 1e-5 of their size."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_close(found[key], wanted[key], f"{where}, {key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_close(one, other, f"{where}, {place}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-5), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 11])
def test_work_is_done_once_and_comes_back_in_order(world_size: int) -> None:
    """With the ranks one after the other: each hands in its share, the last one reads all."""
    items, shares = list(range(7)), []
    for rank in [*range(world_size), 0]:
        mine = []

        def gather(value: list, mine: list = mine) -> list:
            mine.extend(value)
            return [*shares[:world_size], *[[None] * len(value)] * (world_size - len(shares))]

        asked = asked_of(torch.nn.Identity(), rank=rank, world_size=world_size, gather=gather)
        answers = asked.deal(items, lambda item: item * item)
        shares.append(mine)
    assert answers == [item * item for item in items]
    assert len({len(mine) for mine in shares}) == 1


def test_letters_come_back() -> None:
    assert Letters().decode(Letters().encode("a text")) == "a text"
