"""What a run does besides stepping: it begins or goes on, evaluates, saves, goes back, finishes.

Each is a function of the run and of where it stands; the order is train.py's to tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from configs.schema import Config, write_config
from data.batch import Batch
from data.loader import State, merge_states
from data.yardsticks import compare, yardsticks
from retnet.assembly import Run
from retnet.evaluation import KINDS, ask
from retnet.evaluation.asked import Asked, Result
from retnet.models.build import count_parameters
from retnet.models.export import export_model
from retnet.models.generate import sample
from retnet.training.checkpoint import load_checkpoint
from retnet.training.copies import Copies
from retnet.training.curve import loss_curve
from retnet.training.engine import gather_weights
from retnet.training.evaluate import score
from retnet.training.feed import placing
from retnet.training.manifest import replacing
from retnet.training.news import tell_of_saves
from retnet.training.ranks import environment
from retnet.training.rollback import forget_later, go_back
from retnet.training.schedule import due
from retnet.training.state import TrainState


def resume_or_begin(run: Run, copies: Copies | None) -> tuple[TrainState, Iterator[list[Batch]]]:
    """Where the run stands and the batches from there on: its newest good checkpoint, or step 0."""
    loader, metrics, said = run.loader, run.metrics, []

    def check(path: Path, state: TrainState, extra: State) -> None:
        said.extend(loader.check(path, state.position, state.data_fingerprint, extra))

    folder = run.config.folder / "checkpoints"
    loaded = load_checkpoint(run.engine, folder, check, copies=copies)
    state, extra = (loaded.state, loaded.extra) if loaded else (TrainState(), None)
    state.data_fingerprint = loader.fingerprint
    if loaded is not None:
        run.saver.newest = state.step
        for sentence in loaded.passed_over:
            metrics.event("passed_over", why=sentence)
            metrics.say(f"passed over a checkpoint: {sentence}")
        words = "; ".join(filter(None, [f"goes on from {loaded.path}", loaded.words]))
        metrics.say("\n".join([words, *said]))
    for sentence in said:
        metrics.event("data_changed", step=state.step, why=sentence)
    if run.world.is_main:
        write_config(run.config)  # only now: a refused command leaves the run's record alone
    metrics.resume_at(state.step)
    was = {"was": loaded.was} if loaded and loaded.was else {}
    was |= {"environment": environment(run.world.world_size, run.world.device)}
    was |= {"parameters": count_parameters(run.engine.module)}
    metrics.event("resumed" if loaded else "started", step=state.step, of=run.config.steps, **was)
    run.unread.begin(state)
    return state, loader.steps(state.position, extra, placing(run.world.device))


def kinds_due(config: Config, step: int) -> list[str]:
    """What the model is asked after this step; at the end of a run, all that is asked at all."""
    keys = config.evaluation
    clocks = {"sets": config.evaluate_every} | {kind: keys.every(kind) for kind in KINDS}
    if step < config.steps:
        return [kind for kind, every in clocks.items() if due(step, every)]
    return [kind for kind, every in clocks.items() if every or kind == "sets"]


def evaluate(run: Run, state: TrainState, kinds: list[str]) -> None:
    """Asks the model, and logs what came out and how long it took; nothing where a request to stop
    came first. Collective."""
    if (answers := answer(run, state, kinds)) is not None:
        record(run, state, answers)


def answer(run: Run, state: TrainState, kinds: list[str]) -> dict[str, Result] | None:
    """What came out, by kind; None where a request to stop came first. Collective."""
    run.unread.read(state)
    asked = what_is_asked(run, state)
    answers: dict[str, Result] = {}
    for kind in kinds:
        began = time.perf_counter()
        if kind == "sets":
            scores = score(run.engine, run.loader.validation, asked.stop)
            found = None if scores is None else Result(scores, [])
        else:
            found = ask(kind, asked)
        if found is None:
            return None
        took = {f"evaluation/{kind}/seconds": time.perf_counter() - began}
        answers[kind] = found._replace(values=found.values | took)
    return answers


def record(run: Run, state: TrainState, answers: dict[str, Result]) -> None:
    """Logs them, the numbers as one line; the sentences are said at the end of the run alone."""
    values: dict[str, float] = {}
    for found in answers.values():
        values |= found.values
    run.metrics.log(state.step, values)
    for kind, found in answers.items():
        for detail in found.details:
            run.metrics.detail(state.step, kind, **detail)
        if found.words and state.step >= run.config.steps:
            run.metrics.say(found.words)


def what_is_asked(run: Run, state: TrainState) -> Asked:
    """All that a question may need to know."""
    config, world, loader = run.config, run.world, run.loader
    return Asked(
        engine=run.engine,
        tokenizer=loader.tokenizer,
        validation=loader.validation,
        config=config.evaluation,
        seed=config.seed,
        step=state.step,
        length=config.sequence_length,
        rank=world.rank,
        world_size=world.world_size,
        gather=world.gather,
        stop=partial(run.asked_to_stop, "evaluation"),
        tasks=run.tasks,
    )


def save(run: Run, state: TrainState, *, wait: bool = False) -> None:
    """Begins a checkpoint of this step, and may wait for its end; cursors only make resuming quick.
    Collective."""
    run.dog.beat(f"the checkpoint of step {state.step}")
    run.unread.read(state)
    extra = merge_states(run.world.gather(run.loader.state()))
    for failure in (new := run.loader.news(extra)):
        run.metrics.event("quarantined", step=state.step, **failure._asdict())
    for why in sorted({failure.why for failure in new}):
        run.metrics.say(f"goes on without a shard: {why}")
    run.saver.save(state, extra, wait=wait)
    tell(run)


def tell(run: Run) -> None:
    """Says what became of the saves; one that failed may be a reason to stop."""
    reason = tell_of_saves(run.saver, run.metrics, run.config.checkpoint)
    if reason:
        run.stop.ask(reason)


def roll_back(run: Run, state: TrainState) -> None:
    """Back to the last good checkpoint, and on with the rows that come next. Collective."""
    folder = run.config.folder / "checkpoints"
    run.saver.finish()
    run.dog.beat("the way back to an older checkpoint")
    go_back(run.engine, folder, state, run.config.stability, run.metrics)
    run.unread.begin(state)
    save(run, state, wait=True)  # the same weights, with the place where reading stands now
    forget_later(folder, state.step)


def finish(run: Run, state: TrainState) -> bool:
    """The last score, the exported model, and what came out beside what is easy; False where a
    request to stop came first. Collective."""
    config, loader, say = run.config, run.loader, run.metrics.say
    answers = answer(run, state, kinds_due(config, state.step))
    if answers is None:
        return False
    weights = gather_weights(run.engine)
    if weights is None:  # not rank 0
        return True
    run.dog.beat("the export")
    with replacing(export := config.folder / "export") as folder:
        export_model(run.engine.module.config, weights, folder)
        loader.tokenizer.export(folder)
    run.saver.drain(partial(run.dog.beat, "the copies of checkpoints"))
    tell(run)
    record(run, state, answers)  # not before: a run killed here does all of this again
    values = answers["sets"].values
    scores = {name: value for name, value in values.items() if name.startswith("val/")}
    run.metrics.event("finished", step=state.step, **scores)
    if config.logging.sample_tokens:
        tokenizer, new = loader.tokenizer, config.logging.sample_tokens
        ids = sample(export, [tokenizer.bos_id], new, config.seed, tokenizer.vocab_size)
        say(f"\nA sample:\n{tokenizer.decode(ids)}")
    first = loader.validation[0]
    bits = scores[f"val/{first.name}/bits_per_byte"]
    easy = yardsticks(first.texts, loader.tokenizer)
    run.metrics.detail(state.step, "yardsticks", set=first.name, **easy)
    say("\n".join(compare(bits, first.texts, easy)))
    say(f"Finished at step {state.step}.")
    say(f"  loss curve      {loss_curve(config.folder) or 'none: no step was logged'}")
    say(f"  exported model  {export}")
    say(f"  all in a page   python -m retnet.report {config.folder}")
    say(f"  to go on        the same command with steps={2 * state.step}")
    return True
