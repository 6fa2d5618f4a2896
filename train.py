"""Trains a retentive language model: the whole run, told in order.

    python train.py                              one process
    deepspeed train.py model=nucleus_x_tiny      every GPU of this machine
    python train.py --help                       every key

The four rooms meet here: what is computed (retnet/models), how fast (retnet/kernels), on which
tokens (data), on which machines (launch); retnet/training turns gradients into steps.
"""

import logging
import math
import shutil
import sys
import traceback
from collections.abc import Iterator

import hydra
from deepspeed import DeepSpeedEngine
from omegaconf import DictConfig

from configs.explain import check_overrides
from configs.schema import Config, as_dict, plain, write_config
from data.loader import Batch, Loader
from data.prepare import prepare
from data.tokenizer import Tokenizer
from data.yardsticks import yardsticks
from launch.supervise import StopRequest
from launch.terminal import Terminal, claim_terminal
from launch.world import (
    World,
    join_world,
    launched_rank,
    launched_world_size,
    leave_world,
    without_local_rank,
)
from retnet.kernels import select_kernels
from retnet.models.build import build_model, count_parameters, export_model, flops_per_token
from retnet.models.configuration import public_config
from retnet.models.generate import sample
from retnet.training.checkpoint import load_checkpoint, save_checkpoint
from retnet.training.curve import loss_curve
from retnet.training.engine import gather_weights, start_engine
from retnet.training.evaluate import evaluate
from retnet.training.flops import peak_flops
from retnet.training.metrics import Metrics, Speed
from retnet.training.schedule import learning_rate
from retnet.training.state import TrainState
from retnet.training.step import NonFiniteError, train_step

MACHINE_FAULT, USER_ERROR, DIVERGED = 1, 2, 3
"Exit codes; 0 is finished, or asked to stop and saved."

log = logging.getLogger(__name__)


def train(config: Config, terminal: Terminal) -> None:
    """The run: begins or goes on, trains to its last step or until asked to stop, and reports."""
    stop = StopRequest()
    world = join_world()
    metrics = open_run_folder(config, world, terminal)
    kernels = select_kernels(config.kernels, world.device)
    loader, tokenizer = open_data(config, world)
    public = public_config(config.model, tokenizer.bos_id, tokenizer.eos_id)
    model = build_model(public, kernels, config.seed)
    engine = start_engine(
        model,
        config.optimizer,
        config.engine,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        device=world.device,
    )
    state, batches = resume_or_begin(config, engine, loader, metrics)
    metrics.say(
        f"{public.model_type}, {count_parameters(model):,} parameters in {model.dtype} on "
        f"{world.world_size} x {world.device.type}; {kernels.description}; {config.folder}"
    )
    speed = Speed(
        flops_per_token=flops_per_token(model),
        peak_flops=config.logging.peak_flops or peak_flops(world.device, model.dtype),
        world_size=world.world_size,
    )
    saved_at = state.step
    while state.step < config.steps and not world.any(bool(stop)):
        result = take_step(config, engine, state, next(batches))
        if due(state.step, config.log_every):
            metrics.log(state.step, result | speed.measure(tokens_of(config.log_every, config)))
        if due(state.step, config.evaluate_every):
            metrics.log(state.step, score(engine, loader))
            speed.restart()
        if due(state.step, config.save_every):
            saved_at = save(config, engine, state, loader, world, metrics)
            speed.restart()
    if saved_at != state.step or state.step == 0:
        save(config, engine, state, loader, world, metrics)
    loader.close()
    if state.step < config.steps:
        metrics.event("stopped", step=state.step, signal=stop.name)
        metrics.say(
            f"stopped at step {state.step} of {config.steps} and saved; the same command goes on"
        )
    else:
        finish(config, engine, loader, tokenizer, world, metrics)
    metrics.close()
    leave_world()


def open_run_folder(config: Config, world: World, terminal: Terminal) -> Metrics:
    """The run's folder with its config in it, and the voice of the run. Rank 0 alone writes."""
    if world.is_main:
        write_config(config)
    return Metrics(
        config.folder,
        config.logging,
        console=terminal.out,
        total_steps=config.steps,
        run_name=config.name,
        resolved_config=as_dict(config),
        rank=world.rank,
    )


def open_data(config: Config, world: World) -> tuple[Loader, Tokenizer]:
    """The rows of this rank and the tokenizer, which one process per machine trains if need be."""
    if world.local_rank == 0:
        prepare(config.data, config.tokenizer, config.seed)
    world.barrier()
    source, tokenizer = prepare(config.data, config.tokenizer, config.seed)
    loader = Loader(
        config.data,
        source,
        tokenizer,
        seed=config.seed,
        sequence_length=config.sequence_length,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        rank=world.rank,
        world_size=world.world_size,
    )
    seen = world.gather(loader.fingerprint)
    if len(set(seen)) > 1:
        strange = next(rank for rank, value in enumerate(seen) if value != seen[0])
        raise ValueError(
            f"rank {strange} sees other data than rank 0: every machine needs the same files "
            "(data.*) and the same tokenizer"
        )
    return loader, tokenizer


def resume_or_begin(
    config: Config, engine: DeepSpeedEngine, loader: Loader, metrics: Metrics
) -> tuple[TrainState, Iterator[list[Batch]]]:
    """Where the run stands and the batches from there on: at its newest good checkpoint, or 0."""
    loaded = load_checkpoint(engine, config.folder / "checkpoints")
    state, cursors = TrainState(data_fingerprint=loader.fingerprint), None
    if loaded is not None:
        state, cursors = loaded.state, loaded.extra["cursors"]
        if state.data_fingerprint != loader.fingerprint:
            raise ValueError(
                f"{loaded.path} was trained on other rows: the files, tokenizer, seed, "
                "sequence_length or data.* have changed since. Put them back (see "
                f"{loaded.path / 'manifest.json'}), or start a new run with name=..."
            )
        for sentence in loaded.passed_over:
            metrics.event("passed_over", why=sentence)
            metrics.say(f"passed over a checkpoint: {sentence}")
    metrics.resume_at(state.step)
    metrics.event("resumed" if loaded else "started", step=state.step, of=config.steps)
    if loaded:
        metrics.say(f"goes on from {loaded.path}")
    return state, loader.steps(state.position, cursors)


def take_step(
    config: Config, engine: DeepSpeedEngine, state: TrainState, batches: list[Batch]
) -> dict[str, float]:
    """One optimizer step; moves `state` and returns what is worth logging."""
    peak = config.optimizer.learning_rate
    rate = learning_rate(config.schedule, peak, state.step, config.steps)
    result = train_step(engine, batches, learning_rate=rate, seed=config.seed, step=state.step)
    state.step += 1
    state.position += config.global_batch_size
    state.tokens += result.tokens
    return {
        "loss": result.loss,
        "learning_rate": rate,
        "grad_norm": result.grad_norm,
        "tokens": state.tokens,
    }


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0


def tokens_of(steps: int, config: Config) -> int:
    """Tokens that so many steps process, over all ranks."""
    return steps * config.global_batch_size * config.sequence_length


def score(engine: DeepSpeedEngine, loader: Loader) -> dict[str, float]:
    """Loss in nats per token and bits per byte on the held-out documents."""
    result = evaluate(engine, loader.validation())
    bits = result.nats / math.log(2)
    return {
        "val/held_out/loss": result.loss,
        "val/held_out/bits_per_byte": bits / loader.validation_bytes,
    }


def save(
    config: Config,
    engine: DeepSpeedEngine,
    state: TrainState,
    loader: Loader,
    world: World,
    metrics: Metrics,
) -> int:
    """A checkpoint of this step, which it returns. Cursors only make resuming quick."""
    cursors = {name: at for part in world.gather(loader.cursors()) for name, at in part.items()}
    path = save_checkpoint(
        engine,
        state,
        config.folder / "checkpoints",
        as_dict(config),
        extra={"cursors": cursors},
        keep_last=config.checkpoint.keep_last,
    )
    metrics.event("saved", step=state.step, path=str(path))
    return state.step


def finish(
    config: Config,
    engine: DeepSpeedEngine,
    loader: Loader,
    tokenizer: Tokenizer,
    world: World,
    metrics: Metrics,
) -> None:
    """After the last step: the final score, the exported model and the report. Collective."""
    export = config.folder / "export"
    scores = score(engine, loader)
    weights = gather_weights(engine)
    if not world.is_main:
        return
    metrics.log(config.steps, scores)
    partial = export.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    export_model(engine.module.config, weights, partial)
    tokenizer.export(partial)
    shutil.rmtree(export, ignore_errors=True)
    partial.rename(export)
    metrics.event("finished", step=config.steps, **scores)
    report(config, loader, tokenizer, scores["val/held_out/bits_per_byte"], metrics)


def report(
    config: Config, loader: Loader, tokenizer: Tokenizer, bits: float, metrics: Metrics
) -> None:
    """What came out of the run, beside what is easy, and how to go on."""
    easy = yardsticks(loader.held_out, tokenizer)
    metrics.say(
        f"\nheld-out text, {loader.validation_bytes:,} bytes in {len(loader.held_out)} documents, "
        "in bits per byte:"
    )
    metrics.say(f"  this model               {bits:.3f}")
    metrics.say(
        f"  unigram of the tokens    {easy['unigram']:.3f}  {against(bits, easy['unigram'])}"
    )
    metrics.say(f"  gzip -9                  {easy['gzip']:.3f}  {against(bits, easy['gzip'])}")
    if config.logging.sample_tokens:
        written = sample(
            config.folder / "export",
            [tokenizer.bos_id],
            config.logging.sample_tokens,
            config.seed,
        )
        metrics.say(f"\na sample:\n{tokenizer.decode(written)}")
    metrics.say(f"\nloss curve      {loss_curve(config.folder)}")
    metrics.say(f"exported model  {config.folder / 'export'}")
    metrics.say(f"to go on        the same command with more steps, as steps={2 * config.steps}")


def against(bits: float, yardstick: float) -> str:
    """How the model stands to a yardstick, in words."""
    share = abs(bits / yardstick - 1)
    return f"the model needs {share:.0%} {'fewer' if bits < yardstick else 'more'} bits"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Hydra's part: from the composed config to a plain one; below here nothing knows Hydra."""
    config = plain(composed)
    rank = launched_rank()
    terminal = claim_terminal(config.folder / "logs" / f"rank-{rank}.log", speaks=rank == 0)
    try:
        train(config, terminal)
    except (ValueError, NonFiniteError) as error:
        log.exception("the run ends")
        terminal.err.write(f"{error}\n" if rank == 0 else "")
        sys.exit(DIVERGED if isinstance(error, NonFiniteError) else USER_ERROR)
    except Exception:
        log.exception("the run ends")
        terminal.err.write(f"rank {rank} failed:\n{traceback.format_exc()}")
        sys.exit(MACHINE_FAULT)


if __name__ == "__main__":
    sys.argv[1:] = without_local_rank(sys.argv[1:])
    try:
        checked = check_overrides(sys.argv[1:])
        if checked is not None:
            checked.check(launched_world_size())
    except ValueError as error:
        sys.stderr.write(f"{error}\n" if launched_rank() == 0 else "")
        sys.exit(USER_ERROR)
    main()
