"""What one rank does in the tests of evaluation: real engines over gloo, no assertions."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from retnet.evaluation import KINDS, ask
from retnet.evaluation.config import EvaluationConfig
from retnet.evaluation.tasks import open_tasks
from retnet.training.engine import Precision, gather_weights
from retnet.training.step import read_steps, train_step
from tests.retnet.evaluation.local_tasks import TASKS
from tests.retnet.evaluation.questions import LENGTH, VOCABULARY, asked_of, held_out
from tests.retnet.models.small_model import build_model
from tests.retnet.training.workers import main, start

ROWS = 4


def gather(value: Any) -> list:
    """As `World.gather`."""
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def vote() -> bool:
    """A request to stop that nobody made, asked of all: ranks that disagree on how often would
    hang here."""
    word = torch.zeros(1)
    dist.all_reduce(word)
    return bool(word)


def rows_of(step: int) -> list[dict[str, torch.Tensor]]:
    """This rank's rows of a step, in two micro-batches."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH + 1), generator=draw)
    mine = tokens[dist.get_rank() :: dist.get_world_size()]
    return [{"input_ids": x[:, :-1], "shift_labels": x[:, 1:]} for x in mine.chunk(2)]


def random_states() -> tuple:
    """All that draws numbers in a run, to be compared."""
    arrays = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), arrays[1].tolist(), arrays[2]


def questions(folder: Path, stages: list[int], tasks: str, often: bool) -> dict[int, Any]:
    """By stage: what the kinds say of a fresh model. With `often` also two steps, with questions
    before each and without."""
    config = EvaluationConfig(
        prompts=["", "ab", "cd"],
        sample_tokens=6,
        rows=3,
        lengths=[1, 2],
        passkey_depths=3,
        passkey_trials=1,
        tasks=list(TASKS),
        tasks_path=tasks,
        tasks_every=1,
    )
    opened, found = open_tasks(config), {}
    for stage in stages:
        said, steps = {}, {}
        for asks in (True, False) if often else (True,):
            model = build_model("nucleus_x", dropout=0.1, vocab_size=VOCABULARY)
            engine = start(model, stage, False, Precision.float32, 2, rows=ROWS)
            who = dict(rank=dist.get_rank(), world_size=dist.get_world_size(), gather=gather)
            asked = asked_of(engine, config=config, tasks=opened, stop=vote, length=128, **who)
            asked = asked._replace(validation=[held_out([300, 90, 400])])
            results, same = [], True
            for step in range(2 if often else 0):
                engine.train()
                if asks:
                    before = random_states()
                    kinds = KINDS if step == 0 else ("positions",)
                    answers = {kind: ask(kind, asked) for kind in kinds}
                    same &= random_states() == before and engine.module.training
                    said = said or answers
                queued = train_step(engine, rows_of(step), learning_rate=1e-2, seed=0, step=step)
                results += read_steps(engine, [queued])
            if not often:
                said = {kind: ask(kind, asked) for kind in KINDS}
            stopped = asked._replace(stop=lambda: True)
            ended = [ask(kind, stopped) is None for kind in KINDS]
            counters = (engine.global_steps, engine.micro_steps, engine.global_samples)
            losses = [(result.loss, result.grad_norm) for result in results]
            steps[asks] = (losses, gather_weights(engine), counters, same, ended)
            engine.destroy()
        found[stage] = {"said": {kind: tuple(said[kind]) for kind in said}, "steps": steps}
    return found


if __name__ == "__main__":
    main(globals())
