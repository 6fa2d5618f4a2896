"""What a run is made of, opened: the four rooms meet here, each part in one function.

What is done with the parts, and in which order, is train.py's to tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from configs.schema import Config, as_dict
from data.loader import Loader
from data.opening import open_data
from data.uploads import open_upload
from launch import exits
from launch.stop import StopRequest
from launch.terminal import Terminal
from launch.watchdog import Watchdog
from launch.world import PATIENCE, Vote, World
from retnet.evaluation.tasks import open_tasks
from retnet.kernels import select_kernels
from retnet.models.build import build_model, count_parameters, flops_per_token
from retnet.training.blocks import prepare_blocks
from retnet.training.copies import Copies
from retnet.training.engine import built_in_shards, start_engine
from retnet.training.flops import peak_flops
from retnet.training.metrics import Metrics
from retnet.training.profile import Profiler
from retnet.training.saver import Saver
from retnet.training.speed import Speed
from retnet.training.unread import UnreadSteps

if TYPE_CHECKING:
    from retnet.training.engine import DeepSpeedEngine


class Run(NamedTuple):
    """What a run is made of; where it stands is `state`, which moves."""

    config: Config
    world: World
    loader: Loader
    engine: DeepSpeedEngine
    metrics: Metrics
    unread: UnreadSteps
    profiler: Profiler
    saver: Saver
    stop: StopRequest
    vote: Vote
    dog: Watchdog
    tasks: dict[str, Any] | None

    def asked_to_stop(self, where: str, alone: bool = False) -> bool:
        """Whether any rank was asked to, or stands `alone`; also says that all is well. Collective,
        and the same on every rank."""
        self.dog.beat(where)
        return self.vote.any(alone or bool(self.stop))

    def why_stopped(self) -> str | None:
        """The reason of the first rank that has one: not every rank need have been asked.
        Collective."""
        return next(filter(None, self.world.gather(self.stop.reason)), None)


def open_metrics(config: Config, world: World, terminal: Terminal) -> Metrics:
    """The run's voice."""
    return Metrics(
        config.folder,
        config.logging,
        console=terminal.out,
        total_steps=config.steps,
        run_name=config.name,
        resolved_config=as_dict(config),
        rank=world.rank,
    )


def open_profiler(config: Config, world: World, metrics: Metrics) -> Profiler:
    """What looks into single steps on demand."""
    return Profiler(config.folder, config.profile, world.device, world.rank, metrics)


def open_questions(config: Config, world: World) -> dict[str, Any] | None:
    """lm-eval's tasks, if any. One process per machine goes first: it brings the documents."""
    return world.in_turn(lambda: open_tasks(config.evaluation))


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
        f"{model.config.model_type}: {count_parameters(model):,} parameters in "
        f"{str(model.dtype).removeprefix('torch.')} on {world.world_size} x {world.device.type}, "
        f"folder {config.folder}\n"
        f"{kernels.description}\n"
        f"{blocks}, {config.engine.choose_update(config.optimizer, model.dtype)[1]}"
    )
    return engine, compiles, words


def open_watchdog(config: Config, world: World, terminal: Terminal) -> Watchdog:
    """What ends a run that stands still."""

    def tell(why: str) -> None:
        if world.is_main:
            exits.note(config.folder, "hung", why=why)
        terminal.err.write(f"{why}\n")

    return Watchdog(config.folder / "logs", world.rank, limit=config.limits.hang, tell=tell)


def open_copies(config: Config, world: World) -> Copies | None:
    """Rank 0's second place for checkpoints, if there is to be one."""
    keys = config.checkpoint
    if not keys.copy_to or not world.is_main:
        return None
    place = open_upload(f"{keys.copy_to.rstrip('/')}/{config.name}", keys.copy_timeout)
    return Copies(place, keys.keep_last, keys.keep_every)


def open_saver(config: Config, engine: DeepSpeedEngine, copies: Copies | None) -> Saver:
    """What writes the run's checkpoints."""
    # Half: a file that never came costs the save, before the watchdog takes it for a hang.
    patience = (config.limits.hang or PATIENCE.total_seconds()) / 2
    folder, resolved = config.folder / "checkpoints", as_dict(config)
    return Saver(engine, folder, config.checkpoint, resolved, patience=patience, copies=copies)


def clock(config: Config, world: World, engine: DeepSpeedEngine) -> Speed:
    """What measures how fast the run goes."""
    return Speed(
        flops_per_token=flops_per_token(engine.module),
        peak_flops=config.logging.peak_flops or peak_flops(world.device, engine.module.dtype),
        world_size=world.world_size,
        device=world.device,
    )
