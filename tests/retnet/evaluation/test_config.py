"""What makes no sense is refused by the key's name."""

import sys
from pathlib import Path

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
        ({"tasks": ["a"]}, r"tasks=\['a'\] and evaluation.tasks_every=0: say how often"),
    ],
)
def test_a_mistake_is_named(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(**given)


def test_tasks_need_lm_eval_and_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(tasks=["copying"], tasks_path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="tasks_path=.*none is no folder here"):
        EvaluationConfig(**given, tasks_every=1).check()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(sys, "meta_path", [])  # as on a machine without it
    monkeypatch.delitem(sys.modules, "lm_eval")
    with pytest.raises(ValueError, match="pip install 'retnet.evaluation.'"):
        EvaluationConfig(**given, tasks_every=1).check()


def test_every_kind_has_a_clock() -> None:
    assert {EvaluationConfig().every(kind) for kind in KINDS} == {0, 1000}
