"""Trains a retentive language model: the whole run, told in order.

    python train.py                              one process
    deepspeed train.py model=nucleus_x_tiny      every GPU of this machine
    python train.py --help                       every key

The four rooms meet here: what is computed (retnet/models), how fast (retnet/kernels), on which
tokens (data), on which machines (launch); retnet/training turns gradients into steps.
"""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hydra
from omegaconf import DictConfig

from configs.explain import check_overrides
from configs.manual import manual
from configs.schema import Config, as_dict, plain, write_config
from data.batch import Batch
from data.loader import Loader, State, merge_states
from data.opening import open_data
from data.quarantine import BadShard
from data.stores import StoreError
from data.yardsticks import compare
from launch import world as launched
from launch.lock import hold_folder
from launch.supervise import StopRequest
from launch.terminal import Terminal, claim_terminal, refuse
from launch.world import Vote, World, join_world, leave_world
from retnet.kernels import select_kernels
from retnet.models.build import build_model, count_parameters, flops_per_token
from retnet.models.export import export_model
from retnet.models.generate import sample
from retnet.training.blocks import prepare_blocks
from retnet.training.checkpoint import load_checkpoint, save_checkpoint
from retnet.training.compile import rehearse
from retnet.training.curve import loss_curve
from retnet.training.engine import built_in_shards, gather_weights, start_engine
from retnet.training.evaluate import PURE, evaluate
from retnet.training.feed import placing
from retnet.training.flops import peak_flops
from retnet.training.manifest import replacing
from retnet.training.metrics import Metrics
from retnet.training.schedule import due, learning_rate
from retnet.training.speed import Speed
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, train_step
from retnet.training.unread import UnreadSteps

if TYPE_CHECKING:
    from retnet.training.engine import DeepSpeedEngine

MACHINE_FAULT, USER_ERROR, DIVERGED = 1, 2, 3
"Exit codes; 0 is finished, or asked to stop and saved."


class Run(NamedTuple):
    """What a run is made of; where it stands is `state`, which moves."""

    config: Config
    world: World
    loader: Loader
    engine: DeepSpeedEngine
    metrics: Metrics
    unread: UnreadSteps


def train(config: Config, terminal: Terminal) -> None:
    """The run: begins or goes on, trains to its last step or until asked to stop, and reports."""
    world = join_world()
    with (
        StopRequest() as stop,
        Metrics(
            config.folder,
            config.logging,
            console=terminal.out,
            total_steps=config.steps,
            run_name=config.name,
            resolved_config=as_dict(config),
            rank=world.rank,
        ) as metrics,
        closing(open_rows(config, world)) as loader,
    ):
        engine, compiles, words = build(config, world, loader)
        speed = Speed(
            flops_per_token=flops_per_token(engine.module),
            peak_flops=config.logging.peak_flops or peak_flops(world.device, engine.module.dtype),
            world_size=world.world_size,
            device=world.device,
        )
        run = Run(config, world, loader, engine, metrics, UnreadSteps(engine, metrics))
        state, batches = resume_or_begin(run)
        batches = speed.watch(batches)
        if state.step >= config.steps and world.any(metrics.has_event("finished", state.step)):
            metrics.say(
                f"{config.name} is finished: {state.step} steps, {config.folder}\n"
                f"to go on: the same command with more steps, as steps={2 * state.step}"
            )
            return
        metrics.say(words)
        if compiles:
            metrics.say("compiling the layers: a minute or so, seconds where an earlier run did")
            world.in_turn(lambda: rehearse(engine.module, loader.blank(), PURE))
        saved_at = state.step if state.step else None
        stopping = Vote(world)
        speed.restart()
        while state.step < config.steps and not stopping.any(bool(stop)):
            take_step(run, state, next(batches))
            speed.add(config.global_batch_size * config.sequence_length)
            if due(state.step, config.log_every):
                read = run.unread.read(state) | speed.measure(world.largest)
                metrics.log(state.step, read | loader.progress(state.position))
            if due(state.step, config.evaluate_every) and state.step < config.steps:
                run.unread.read(state)
                metrics.log(state.step, score(run))
                speed.restart()
            if due(state.step, config.save_every):
                saved_at = save(run, state)
                speed.restart()
        if saved_at != state.step:
            save(run, state)
        if state.step < config.steps:
            metrics.event("stopped", step=state.step, why=stop.reason)
            metrics.say(f"stopped and saved at step {state.step}; the same command goes on there")
        else:
            finish(run, state)


def open_rows(config: Config, world: World) -> Loader:
    """This rank's rows. One process per machine goes first: it trains the tokenizer if need be.

    A machine that lacks the text, or has other text, stops all of them with its sentence.
    """
    share = config.share(world.rank, world.world_size)
    loader = world.in_turn(
        lambda: open_data(config.data, config.tokenizer, seed=config.seed, share=share)
    )
    if len(set(world.gather(loader.fingerprint))) > 1:
        raise ValueError("the ranks see different data: all need the same data.* and tokenizer.*")
    return loader


def build(config: Config, world: World, loader: Loader) -> tuple[DeepSpeedEngine, bool, str]:
    """The engine and in it the model on the chosen kernels, whether its layers are compiled when
    they first run, and all that was chosen in words. Collective."""
    kernels = select_kernels(config.kernels, world.device)
    tokens = loader.tokenizer.bos_id, loader.tokenizer.eos_id
    with built_in_shards(config.engine, world.device):
        model = build_model(config.model, kernels, config.seed, *tokens)
    compiles, blocks = prepare_blocks(
        model,
        model.model.layers,
        config.engine,
        skeleton=lambda: type(model)(model.config, kernels),
        batch=loader.blank(),
        flops=flops_per_token(model) * config.tokens,
        cache=Path(config.data.cache) / "compiled",
        device=world.device,
        local_size=world.local_size,
    )
    engine = start_engine(
        model,
        config.optimizer,
        config.engine,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.rows_at_once(world.world_size),
        device=world.device,
        adamw_step=kernels.adamw_step,
    )
    words = (
        f"{model.config.model_type}: {count_parameters(model):,} parameters, {model.dtype} on "
        f"{world.world_size} x {world.device.type}, {kernels.description}, {blocks}, "
        f"{config.engine.choose_update(config.optimizer, model.dtype)[1]}, folder {config.folder}"
    )
    return engine, compiles, words


def resume_or_begin(run: Run) -> tuple[TrainState, Iterator[list[Batch]]]:
    """Where the run stands and the batches from there on: its newest good checkpoint, or step 0."""
    loader, metrics, said = run.loader, run.metrics, []

    def check(path: Path, state: TrainState, extra: State) -> None:
        said.extend(loader.check(path, state.position, state.data_fingerprint, extra))

    loaded = load_checkpoint(run.engine, run.config.folder / "checkpoints", check)
    state, extra = (loaded.state, loaded.extra) if loaded else (TrainState(), None)
    state.data_fingerprint = loader.fingerprint
    if loaded is not None:
        for sentence in loaded.passed_over:
            metrics.event("passed_over", why=sentence)
            metrics.say(f"passed over a checkpoint: {sentence}")
        metrics.say("\n".join([f"goes on from {loaded.path}", *said]))
    for sentence in said:
        metrics.event("data_changed", step=state.step, why=sentence)
    if run.world.is_main:
        write_config(run.config)  # only now: a refused command leaves the run's record alone
    metrics.resume_at(state.step)
    metrics.event("resumed" if loaded else "started", step=state.step, of=run.config.steps)
    return state, loader.steps(state.position, extra, placing(run.world.device))


def take_step(run: Run, state: TrainState, batches: list[Batch]) -> None:
    """Queues one optimizer step and moves `state`, but for what only its reading tells."""
    config, step = run.config, state.step
    rate = learning_rate(config.schedule, config.optimizer.learning_rate, step, config.steps)
    queued = train_step(run.engine, batches, learning_rate=rate, seed=config.seed, step=step)
    state.step += 1
    state.position += config.global_batch_size
    run.unread.add(queued, state)


def score(run: Run) -> dict[str, float]:
    """Nats per token and bits per byte on each set of held-out documents. Collective."""
    scores = {}
    for held_out in run.loader.validation:
        result = evaluate(run.engine, held_out.batches())
        scores[f"val/{held_out.name}/loss"] = result.loss
        scores[f"val/{held_out.name}/bits_per_byte"] = result.bits / held_out.bytes
    return scores


def save(run: Run, state: TrainState) -> int:
    """A checkpoint of this step, which it returns; cursors only make resuming quick. Collective."""
    run.unread.read(state)
    extra = merge_states(run.world.gather(run.loader.state()))
    for failure in (new := run.loader.news(extra)):
        run.metrics.event("quarantined", step=state.step, **failure._asdict())
    for why in sorted({failure.why for failure in new}):
        run.metrics.say(f"goes on without a shard: {why}")
    folder, keep_last = run.config.folder / "checkpoints", run.config.checkpoint.keep_last
    path = save_checkpoint(run.engine, state, folder, as_dict(run.config), extra, keep_last)
    run.metrics.event("saved", step=state.step, path=str(path))
    return state.step


def finish(run: Run, state: TrainState) -> None:
    """The last score, the exported model, and what came out beside what is easy. Collective."""
    config, loader, say = run.config, run.loader, run.metrics.say
    scores = score(run)
    weights = gather_weights(run.engine)
    if weights is None:  # not rank 0
        return
    run.metrics.log(state.step, scores)
    with replacing(export := config.folder / "export") as folder:
        export_model(run.engine.module.config, weights, folder)
        loader.tokenizer.export(folder)
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


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Hydra's part: from the composed config to a plain one; below here nothing knows Hydra."""
    config, rank = plain(composed), launched.rank()
    terminal = claim_terminal(config.folder / "logs" / f"rank-{rank}.log", speaks=rank == 0)
    try:
        with hold_folder(config.folder) if rank == 0 else nullcontext():
            train(config, terminal)
        leave_world()
    except Exception as error:
        logging.getLogger(__name__).exception("the run ends")
        if not isinstance(error, ValueError | NonFiniteError):
            told = error if isinstance(error, BadShard | StoreError) else traceback.format_exc()
            terminal.err.write(f"rank {rank} failed:\n{told}\n")
            sys.exit(MACHINE_FAULT)
        terminal.err.write(f"{error}\n" if rank == 0 else "")
        sys.exit(DIVERGED if isinstance(error, NonFiniteError) else USER_ERROR)


if __name__ == "__main__":
    gc.freeze()  # what the imports made stays: no walk over it in the loop, the workers or at exit
    sys.argv[1:] = arguments = launched.without_local_rank(sys.argv[1:])
    try:
        if {"-h", "--help"} & set(arguments):
            sys.stdout.write(manual([word for word in arguments if not word.startswith("-")]))
            sys.exit()
        if (checked := check_overrides(arguments)) is not None:
            checked.check(launched.world_size())
    except ValueError as error:
        refuse(str(error), launched.rank(), USER_ERROR)
    main()
