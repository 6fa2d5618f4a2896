"""lm-eval's scores are those of the model's own likelihoods and texts."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from retnet.evaluation import tasks as module
from retnet.evaluation.asked import Asked, Result
from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.tasks import Answers, check_names, open_tasks, run_tasks, split
from tests.retnet.evaluation.local_tasks import TASKS, WORDS, write_tasks
from tests.retnet.evaluation.questions import VOCABULARY, Letters, asked_of
from tests.retnet.models.small_model import build_model


class Request(NamedTuple):
    """What of lm-eval's `Instance` a model reads."""

    args: tuple


def answers(asked: Asked) -> Answers:
    found = Answers()
    found.asked = asked
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    folder = write_tasks(tmp_path_factory.mktemp("tasks"))
    return EvaluationConfig(tasks=list(TASKS), tasks_path=str(folder), tasks_every=1)


def scores_of(model: torch.nn.Module, config: EvaluationConfig) -> Result:
    with torch.no_grad():
        return run_tasks(asked_of(model, config=config, tasks=open_tasks(config)))


def test_every_local_task_is_scored_by_the_models_own_numbers(config: EvaluationConfig) -> None:
    model = build_model("retnet", vocab_size=VOCABULARY)
    result = scores_of(model, config)
    documents = list(zip(WORDS, WORDS[1:], strict=False))
    texts = [f"{first} and {second} and {first} and" for first, second in documents]

    def nats(text: str, since: int) -> float:
        ids = torch.tensor([[Letters.bos_id, *Letters().encode(text)]])
        logits = model(ids[:, :-1], forward_mode="parallel").logits[0, since:]
        return torch.nn.functional.cross_entropy(
            logits, ids[0, 1 + since :], reduction="sum"
        ).item()

    right = 0
    for text, choices in zip(texts, documents, strict=True):
        ends = [f" {end}" for end in (*choices, "none of the two")]
        costs = [nats(text + end, len(text)) for end in ends]
        right += costs.index(min(costs)) == 1
    assert result.values["tasks/copying/acc"] == right / len(texts)
    total = sum(nats(text, 0) for text in texts) / math.log(2)
    size = sum(len(text.encode()) for text in texts)
    assert result.values["tasks/reading/bits_per_byte"] == pytest.approx(total / size, rel=1e-5)
    assert {"tasks/going_on/exact_match", "tasks/copying/acc_norm"} < result.values.keys()
    assert not any("stderr" in name or "alias" in name for name in result.values)
    by_task = {detail["task"]: detail for detail in result.details}
    assert by_task.keys() == TASKS.keys() and by_task["copying"]["documents"] == len(texts)
    assert by_task["copying"]["metrics"]["acc"] == right / len(texts)


def test_scores_are_the_same_when_asked_again(config: EvaluationConfig) -> None:
    model, opened = build_model("retnet", vocab_size=VOCABULARY), open_tasks(config)
    with torch.no_grad():
        first, second = (run_tasks(asked_of(model, config=config, tasks=opened)) for _ in range(2))
    assert first == second


def test_likelihoods_do_not_depend_on_who_is_read_together(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(architecture, vocab_size=VOCABULARY)
    lengths = [(0, 3), (30, 1), (5, 60), (2, 2), (100, 7), (1, 1), (8, 8), (9, 20), (3, 1), (50, 5)]
    pairs = [(("ab c" * 40)[:context], ("x yz" * 40)[:end]) for context, end in lengths]
    requests = [Request(pair) for pair in pairs]
    with torch.no_grad():
        together = answers(asked_of(model)).loglikelihood(requests)
        monkeypatch.setattr(module, "ROWS", 1)
        alone = answers(asked_of(model)).loglikelihood(requests)
    for one, other in zip(together, alone, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1] == other[1]


def test_greedy_ends_are_known_as_such() -> None:
    model = build_model("retnet", vocab_size=VOCABULARY)
    with torch.no_grad():
        asked = answers(asked_of(model))
        settings = {"until": [], "max_gen_toks": 5}
        (text,) = asked.generate_until([Request(("ab", settings))])
        (stopped,) = asked.generate_until([Request(("ab", settings | {"until": text[2]}))])
        if text.isascii() and text.strip() == text:
            found = asked.loglikelihood([Request(("ab", text)), Request(("ab", text[::-1]))])
            assert found[0][1] and not found[1][1] and found[0][0] > found[1][0]
    assert stopped == text[: text.index(text[2])]


def test_spaces_between_the_two_belong_to_the_end() -> None:
    encode = Letters().encode
    assert split(encode, "ab ", "cd") == (encode("ab"), encode(" cd"))
    assert split(encode, "", "cd") == ([], encode("cd"))
    assert split(encode, "  ", "cd") == ([], encode("  cd"))


def test_what_cannot_be_asked_is_refused_with_a_sentence(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    given = dict(tasks_every=1, tasks_path=str(tmp_path))
    with pytest.raises(ValueError, match="no task 'copyin'.*did you mean 'copying'"):
        check_names(["copying", "copyin"], list(TASKS), str(tmp_path))
    (tmp_path / "documents.jsonl").unlink()
    with pytest.raises(ValueError, match="evaluation.tasks=.*cannot be read"):
        open_tasks(EvaluationConfig(tasks=["copying"], **given))
    assert open_tasks(EvaluationConfig()) is None
