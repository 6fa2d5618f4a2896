"""Trains a retentive language model: the whole run, told in order.

    python train.py                              one process
    deepspeed train.py model=nucleus_x_tiny      every GPU of this machine
    python train.py --help                       every key

The four rooms meet here: what is computed (retnet/models), how fast (retnet/kernels), on which
tokens (data), on which machines (launch); retnet/training turns gradients into steps.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from configs.explain import check_overrides
from configs.manual import manual
from configs.schema import Config, plain, write_config
from data.batch import Batch
from data.loader import State, merge_states
from data.quarantine import BadShard
from data.stores import StoreError
from data.yardsticks import compare
from launch import exits
from launch import world as launched
from launch.environment import read_environment
from launch.lock import hold_folder
from launch.stop import Stopped, StopRequest
from launch.terminal import Terminal, claim_terminal, refuse
from launch.watchdog import this_process
from launch.world import Vote, check_shared, join_world, leave_world
from retnet.assembly import (
    Run,
    build,
    clock,
    open_copies,
    open_metrics,
    open_rows,
    open_saver,
    open_watchdog,
)
from retnet.models.export import export_model
from retnet.models.generate import sample
from retnet.training.checkpoint import load_checkpoint
from retnet.training.compile import rehearse
from retnet.training.copies import Copies
from retnet.training.curve import loss_curve
from retnet.training.engine import gather_weights
from retnet.training.evaluate import PURE, score
from retnet.training.feed import placing
from retnet.training.manifest import replacing
from retnet.training.news import tell_of_saves
from retnet.training.rollback import forget_later, go_back, struck_out
from retnet.training.saver import SaveError
from retnet.training.schedule import due, learning_rate
from retnet.training.stability import Mode
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, train_step
from retnet.training.unread import UnreadSteps

DIVERGED = (NonFiniteError,)
PLAIN = (BadShard, StoreError, SaveError)
"Faults of the machine whose sentence says all."


def train(config: Config, terminal: Terminal, stop: StopRequest) -> None:
    """The run: begins or goes on, trains to its last step or until asked to stop, and reports."""
    world = join_world(config.limits.interface)
    check_shared(world, config.folder)
    with (
        open_metrics(config, world, terminal) as metrics,
        closing(open_rows(config, world)) as loader,
        open_watchdog(config, world, terminal) as dog,
    ):
        engine, compiles, words = build(config, world, loader)
        copies = open_copies(config, world)
        unread = UnreadSteps(engine, metrics, config.stability)
        with open_saver(config, engine, copies) as saver:
            parts = (engine, metrics, unread, saver, stop, Vote(world), dog)
            run = Run(config, world, loader, *parts)
            state, rows = resume_or_begin(run, copies)
            if state.step >= config.steps and world.any(metrics.has_event("finished", state.step)):
                metrics.say(
                    f"{config.name} is finished: {state.step} steps, {config.folder}\n"
                    f"to go on: the same command with more steps, as steps={2 * state.step}"
                )
                return
            metrics.say(words)
            if compiles:
                metrics.say("compiling the layers: a minute or so, seconds where a run did before")
                world.in_turn(lambda: rehearse(engine.module, loader.blank(), PURE))
            stop.begin()
            dog.begin(world.gather(this_process()))
            go_on(run, state, rows)
            leave(run, state)


def go_on(run: Run, state: TrainState, rows: Iterator[list[Batch]]) -> None:
    """The loop: to the last step, or until any rank was asked to stop. Collective."""
    config, metrics = run.config, run.metrics
    speed = clock(config, run.world, run.engine)
    rows = speed.watch(rows)
    if state.step == 0 and config.stability.mode is Mode.rollback:
        save(run, state)  # there is always something to go back to
    speed.restart()
    while state.step < config.steps:
        batches = draw(run, rows, state.step)
        if run.asked_to_stop(f"step {state.step + 1}", batches is None):
            if batches is not None:
                run.loader.give_back()
            break
        take_step(run, state, batches)
        speed.add(config.global_batch_size * config.sequence_length)
        if due(state.step, config.log_every):
            read = run.unread.read(state) | speed.measure(run.world.largest)
            metrics.log(state.step, read | run.loader.progress(state.position))
        if due(state.step, config.evaluate_every) and state.step < config.steps:
            run.unread.read(state)
            scores = score(
                run.engine, run.loader.validation, partial(run.asked_to_stop, "evaluation")
            )
            if scores is not None:
                metrics.log(state.step, scores)
            speed.restart()
        if due(state.step, config.save_every):
            save(run, state)
            speed.restart()
        if struck_out(state, config.stability):
            roll_back(run, state)
            speed.restart()
        tell(run)


def draw(run: Run, rows: Iterator[list[Batch]], step: int) -> list[Batch] | None:
    """The batches of the next step; None where a request to stop came in the wait for them."""
    run.dog.beat(f"waiting for the data of step {step + 1}")
    try:
        with run.stop.waiting():
            return next(rows)
    except Stopped:
        return None


def leave(run: Run, state: TrainState) -> None:
    """Saves what is not saved, and ends the run as it stands: finished, or stopped. Collective."""
    run.unread.read(state)
    run.saver.finish()
    tell(run)
    if run.world.any(run.stop.fault):
        raise SaveError(run.stop.reason or "rank 0 cannot save")
    if run.world.any(run.world.is_main and run.saver.newest != state.step):
        save(run, state, wait=True)
    if state.step < run.config.steps or not finish(run, state):
        run.metrics.event("stopped", step=state.step, why=run.why_stopped())
        run.metrics.say(f"stopped and saved at step {state.step}; the same command goes on there")


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
    metrics.event("resumed" if loaded else "started", step=state.step, of=run.config.steps, **was)
    run.unread.begin(state)
    return state, loader.steps(state.position, extra, placing(run.world.device))


def take_step(run: Run, state: TrainState, batches: list[Batch]) -> None:
    """Queues one optimizer step and moves `state`, but for what only its reading tells."""
    config, step = run.config, state.step
    rate = learning_rate(config.schedule, config.optimizer.learning_rate, step, config.steps)
    judge = run.unread.stability
    queued = train_step(
        run.engine, batches, learning_rate=rate, seed=config.seed, step=step, stability=judge
    )
    state.step += 1
    state.position += config.global_batch_size
    run.unread.add(queued, state)


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
    scores = score(run.engine, loader.validation, partial(run.asked_to_stop, "evaluation"))
    if scores is None:
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
    run.metrics.log(state.step, scores)  # not before: a run killed here does all of this again
    run.metrics.event("finished", step=state.step, **scores)
    if config.logging.sample_tokens:
        ids = sample(export, [loader.tokenizer.bos_id], config.logging.sample_tokens, config.seed)
        say(f"\nA sample:\n{loader.tokenizer.decode(ids)}")
    first = loader.validation[0]
    bits = scores[f"val/{first.name}/bits_per_byte"]
    say("\n".join(compare(bits, first.texts, loader.tokenizer)))
    say(f"Finished at step {state.step}.")
    say(f"  loss curve      {loss_curve(config.folder) or 'none: no step was logged'}")
    say(f"  exported model  {export}")
    say(f"  to go on        the same command with steps={2 * state.step}")
    return True


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Hydra's part: from the composed config to a plain one; below here nothing knows Hydra."""
    config, rank = plain(composed), launched.rank()
    os.umask(os.umask(0o77) | 0o022)  # nobody else writes here, whatever the shell allows
    terminal = claim_terminal(config.folder / "logs" / f"rank-{rank}.log", speaks=rank == 0)
    leave_early = exits.leaving(terminal, config.folder, rank)
    with (
        exits.ending(terminal, rank, diverged=DIVERGED, plain=PLAIN),
        StopRequest(minutes=config.limits.wall_clock, leave=leave_early) as stop,
        hold_folder(config.folder) if rank == 0 else nullcontext(),
        exits.noting(config.folder, rank, diverged=DIVERGED),
    ):
        train(config, terminal, stop)
        leave_world()


if __name__ == "__main__":
    gc.freeze()  # what the imports made stays: no walk over it in the loop, the workers or at exit
    sys.argv[1:] = arguments = launched.without_local_rank(sys.argv[1:])
    try:
        read_environment()
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(manual([word for word in arguments if not word.startswith("-")]))
            sys.exit()
        if (checked := check_overrides(arguments)) is not None:
            checked.check(launched.world_size())
    except ValueError as error:
        refuse(str(error), launched.rank(), exits.USER_ERROR)
    main()
