"""lm-eval's tasks, answered by the engine's model in the middle of training.

Every rank goes through the same tasks with the same requests, as if it were alone; only the forward
passes are dealt out. So no task knows of ranks, and all ranks come to the same scores. lm-eval is
imported where tasks are asked for, and nowhere else: it takes seconds.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy
import torch

from retnet.evaluation.asked import Asked, Result
from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.samples import generate

ROWS, POSITIONS = 8, 4096
"""Texts that are read at once, and their tokens, at most: most of them get logits."""
LONGEST_ANSWER = 256
"""Tokens of an answer where a task does not say, as lm-eval's own models have it."""
SEED = 1234
"""Of the examples that a task shows before its questions, as lm-eval's own command has it."""


class Pair(NamedTuple):
    """A text whose end is to be judged."""

    context: list[int]
    end: list[int]


def open_tasks(config: EvaluationConfig) -> dict[str, Any] | None:
    """lm-eval's tasks with their documents read; None where none is asked for.

    Raises:
        ValueError: lm-eval is not there, knows no such task, or does not find a task's documents.
    """
    if not config.tasks:
        return None
    config.check()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=config.tasks_path or None, include_defaults=False)
    if set(config.tasks) - set(manager.all_tasks):
        manager = TaskManager(include_path=config.tasks_path or None)
    check_names(config.tasks, manager.all_tasks, config.tasks_path)
    try:
        with same_draws():
            return manager.load(config.tasks)
    except Exception as error:  # of whatever library reads the documents
        raise ValueError(
            f"evaluation.tasks={config.tasks} cannot be read: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        ) from error


def check_names(tasks: list[str], known: list[str], path: str) -> None:
    """Raises ValueError for a task that is not `known`, with the nearest name that is."""
    for task in tasks:
        if task not in known:
            close = get_close_matches(task, known, n=1)
            raise ValueError(
                f"evaluation.tasks: lm-eval has no task {task!r}"
                + (f" and there is none in {path}" if path else "")
                + (f"; did you mean {close[0]!r}?" if close else "; see lm-eval ls tasks")
            )


@contextmanager
def same_draws() -> Iterator[None]:
    """What tasks draw inside is the same on every rank and each time; afterwards the random states
    of Python and numpy are what they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    random.seed(SEED)
    numpy.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)


def run_tasks(asked: Asked) -> Result:
    """`tasks/<task>/<metric>` of every task, as lm-eval computes them."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate

    assert asked.tasks is not None
    model = type("Asked", (Answers, LM), {})()
    model.asked = asked
    limit = asked.config.tasks_limit or None
    for task in asked.tasks["tasks"].values():
        task.set_fewshot_seed(SEED)  # else each rank draws other examples, and anew each time
    with same_draws():
        found = evaluate(model, asked.tasks, limit=limit, bootstrap_iters=0, log_samples=False)
    values, details = {}, []
    for task, scores in {**found["results"], **found.get("groups", {})}.items():
        metrics = {name_of(key): value for key, value in scores.items() if is_score(key, value)}
        documents = found["n-samples"].get(task, {}).get("effective")
        details.append({"task": task, "metrics": metrics, "documents": documents})
        values |= {f"tasks/{task}/{metric}": value for metric, value in metrics.items()}
    return Result(values, details)


def name_of(key: str) -> str:
    """`acc` of lm-eval's `acc,none`; `exact_match/strict` of `exact_match,strict`."""
    return key.removesuffix(",none").replace(",", "/")


def is_score(key: str, value: object) -> bool:
    """Whether one of lm-eval's results is a number that was measured."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and "," in key and "_stderr" not in key


class Answers:
    """What lm-eval asks of a model (`lm_eval.api.model.LM`): the three kinds of requests."""

    asked: Asked

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy decoding would give it."""
        tokenizer = self.asked.tokenizer
        pairs = [split(tokenizer.encode, *request.args) for request in requests]
        pairs = [Pair([tokenizer.bos_id, *context], end) for context, end in pairs]
        order = sorted(range(len(pairs)), key=lambda at: -len(pairs[at].context + pairs[at].end))
        groups = grouped(order, pairs)
        answers = self.asked.deal(
            groups, lambda group: judge(self.asked, [pairs[at] for at in group])
        )
        by_place = {
            at: answer
            for group, found in zip(groups, answers, strict=True)
            for at, answer in zip(group, found, strict=True)
        }
        return [by_place[at] for at in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-likelihood of whole texts, each from the beginning of a document."""
        tokenizer = self.asked.tokenizer

        def read(text: str) -> float:
            ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
            if ids.shape[1] == 1:  # as many passes as for any other
                ids = torch.tensor([[tokenizer.bos_id, -100]])
            return -float(self.asked.nats(ids[:, :-1], ids[:, 1:], None)[0])

        return self.asked.deal([request.args[0] for request in requests], read)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy continuations, or drawn ones where the task says so, up to a task's stop words."""
        longest = [request.args[1].get("max_gen_toks", LONGEST_ANSWER) for request in requests]
        texts: dict[int, str] = {}
        for tokens in sorted(set(longest)):  # ranks decode equally far
            places = [at for at, count in enumerate(longest) if count == tokens]
            written = self.asked.deal(
                places, lambda at, n=tokens: self._write(requests[at].args, n)
            )
            texts |= dict(zip(places, written, strict=True))
        return [texts[at] for at in range(len(requests))]

    def _write(self, request: tuple[str, dict[str, Any]], tokens: int) -> str:
        prompt, settings = request
        seed = hashlib.blake2b(f"{self.asked.seed} {prompt}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
        warm = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        ids = generate(self.asked, prompt, tokens, warm, settings.get("top_p", 1.0), generator)
        text, stops = self.asked.tokenizer.decode(ids), settings.get("until") or []
        ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        return text[: min((end for end in ends if end >= 0), default=len(text))]


def split(
    encode: Callable[[str], list[int]], context: str, end: str
) -> tuple[list[int], list[int]]:
    """The ids of context + end as one text, divided where the context's own end; spaces between the
    two belong to the end, as lm-eval has it."""
    bare = context.rstrip()
    end, context = context[len(bare) :] + end, bare
    whole, before = encode(context + end), encode(context) if context else []
    at = min(len(before), len(whole) - 1)
    return whole[:at], whole[at:]


def grouped(order: list[int], pairs: list[Pair]) -> list[list[int]]:
    """`order` cut into groups of at most ROWS texts and POSITIONS tokens once padded; the first of
    each is its longest."""
    groups: list[list[int]] = []
    for at in order:
        longest = len(pairs[groups[-1][0]].context + pairs[groups[-1][0]].end) if groups else 0
        if not groups or len(groups[-1]) == ROWS or (len(groups[-1]) + 1) * longest > POSITIONS:
            groups.append([])
        groups[-1].append(at)
    return groups


def judge(asked: Asked, pairs: list[Pair]) -> list[tuple[float, bool]]:
    """(log-likelihood of the end after the context, whether each of its tokens was the likeliest),
    in one forward pass. Padding stands behind, where no earlier token sees it."""
    rows = [[*pair.context, *pair.end][:-1] for pair in pairs]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), asked.tokenizer.eos_id)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    first = min(len(pair.context) for pair in pairs) - 1
    settings = {"forward_mode": "chunkwise", "logits_to_keep": width - first}
    chances = asked.forward(ids, **settings).logits.float().log_softmax(-1)
    found = []
    for row, pair in zip(chances, pairs, strict=True):
        begin = len(pair.context) - 1 - first
        mine = row[begin : begin + len(pair.end)]  # [end, vocabulary]
        wanted = torch.tensor(pair.end, device=mine.device)
        likelihood = mine.gather(-1, wanted[:, None]).double().sum().item()
        found.append((likelihood, bool((mine.argmax(-1) == wanted).all())))
    return found
