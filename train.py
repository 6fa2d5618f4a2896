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
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext

import hydra
from omegaconf import DictConfig

from configs.command_line import in_order
from configs.explain import check_overrides
from configs.manual import manual
from configs.schema import Config, plain
from data.batch import Batch
from data.quarantine import BadShard
from data.stores import StoreError
from launch import exits
from launch import world as launched
from launch.environment import read_environment
from launch.lock import hold_folder
from launch.stop import Stopped, StopRequest
from launch.sweep.launcher import is_sweep, run_sweep
from launch.terminal import Terminal, claim_terminal, refuse
from launch.watchdog import this_process
from launch.world import Vote, check_shared, join_world, leave_world
from retnet.assembly import (
    Run,
    build,
    clock,
    open_copies,
    open_metrics,
    open_profiler,
    open_questions,
    open_rows,
    open_saver,
    open_watchdog,
)
from retnet.planning import planned, text
from retnet.session import evaluate, finish, kinds_due, resume_or_begin, roll_back, save, tell
from retnet.training.checkpoint import LoadError
from retnet.training.compile import rehearse
from retnet.training.evaluate import PURE
from retnet.training.rollback import struck_out
from retnet.training.saver import SaveError
from retnet.training.schedule import due, learning_rate
from retnet.training.stability import Mode
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, train_step
from retnet.training.unread import UnreadSteps

DIVERGED = (NonFiniteError,)
PLAIN = (BadShard, StoreError, SaveError, LoadError)
"Faults of the machine whose sentence says all."


def train(config: Config, terminal: Terminal, stop: StopRequest) -> None:
    """The run: begins or goes on, trains to its last step or until asked to stop, and reports."""
    world = join_world(config.limits.interface)
    check_shared(world, config.folder)
    tasks = open_questions(config, world)  # first: a wrong name is not to wait for the data
    with (
        open_metrics(config, world, terminal) as metrics,
        open_profiler(config, world, metrics) as profiler,
        closing(open_rows(config, world)) as loader,
        open_watchdog(config, world, terminal) as dog,
    ):
        engine, compiles, words = build(config, world, loader)
        copies = open_copies(config, world)
        unread = UnreadSteps(engine, metrics, config.stability, config.logging.straggler)
        with open_saver(config, engine, copies) as saver:
            parts = (engine, metrics, unread, profiler, saver, stop, Vote(world), dog, tasks)
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
        if run.profiler.look(state.step):
            speed.restart()
        take_step(run, state, batches)
        speed.add(config.global_batch_size * config.sequence_length)
        if due(state.step, config.log_every):
            read = run.unread.read(state) | run.unread.times(state.step)
            read |= speed.measure(run.world.largest) | run.loader.progress(state.position)
            metrics.log(state.step, read)
        if state.step < config.steps and (asked := kinds_due(config, state.step)):
            evaluate(run, state, asked)
            speed.restart()
        if due(state.step, config.save_every):
            save(run, state)
            speed.restart()
        if struck_out(state, config.stability):
            roll_back(run, state)
            speed.restart()
        tell(run)
    run.profiler.close(state.step)  # before the run says how it ended, which is its last word


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


def take_step(run: Run, state: TrainState, batches: list[Batch]) -> None:
    """Queues one optimizer step and moves `state`, but for what only its reading tells."""
    config, step = run.config, state.step
    rate = learning_rate(config.schedule, config.optimizer.learning_rate, step, config.steps)
    judge = run.unread.stability
    queued = train_step(
        run.engine,
        batches,
        learning_rate=rate,
        seed=config.seed,
        step=step,
        stability=judge,
        norms=due(step + 1, config.logging.norms_every),
    )
    state.step += 1
    state.position += config.global_batch_size
    run.unread.add(queued, state)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Hydra's part: from the composed config to a plain one; below here nothing knows Hydra."""
    config, rank = plain(composed), launched.rank()
    del sys.argv[1:]  # wandb keeps it; the config is the same without passwords
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
    os.umask(os.umask(0o77) | 0o022)  # nobody else writes here, whatever the shell allows
    gc.freeze()  # what the imports made stays: no walk over it in the loop, the workers or at exit
    sys.argv[1:] = arguments = in_order(launched.without_local_rank(sys.argv[1:]))
    try:
        read_environment()
    except ValueError as error:  # this machine's alone: rank 0 may be on another
        refuse(f"{socket.gethostname()}: {error}", launched.local_rank(), exits.USER_ERROR)
    try:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(manual([word for word in arguments if not word.startswith("-")]))
            sys.exit()
        if "--plan" in arguments:
            config = check_overrides(arguments)
            devices = config.plan.devices or launched.world_size()
            words = text(planned(config, devices))
            sys.stdout.write(words if launched.rank() == 0 else "")
            sys.exit()
        if (checked := check_overrides(arguments)) is not None:
            checked.check(launched.world_size())
        if is_sweep(arguments):
            sys.exit(run_sweep(main, check_overrides))
    except ValueError as error:
        refuse(str(error), launched.rank(), exits.USER_ERROR)
    main()
