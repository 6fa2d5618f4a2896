"""What makes no sense is refused by the key's name."""

import pytest

from retnet.evaluation import KINDS
from retnet.evaluation.config import EvaluationConfig


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"samples_every": -1}, "evaluation.samples_every=-1"),
        ({"rows": 0}, "evaluation.rows=0"),
        ({"top_p": 0.0}, "evaluation.top_p=0.0"),
        ({"lengths": [2, 1]}, "evaluation.lengths="),
        ({"lengths": []}, "evaluation.lengths="),
        ({"lengths": [0, 1]}, "evaluation.lengths="),
        ({"prompts": []}, "evaluation.prompts="),
        ({"tasks_every": 5}, "name the tasks"),
    ],
)
def test_a_mistake_is_named(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(**given)


def test_every_kind_has_a_clock() -> None:
    assert {EvaluationConfig().every(kind) for kind in KINDS} == {0, 1000}
