"""The second half of C13: what saving a checkpoint costs beside the steps that it interrupts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from retnet.models.build import count_parameters
from retnet.training.checkpoint import load_checkpoint
from retnet.training.engine import gather_weights
from retnet.training.saver import CheckpointConfig, Saver
from retnet.training.state import TrainState
from retnet.training.step import train_step
from tests.benchmarks.measure import Comparison, Contender, Settings, relative_error
from tests.benchmarks.models import our_model
from tests.benchmarks.steps import RATE, Batch, draw_batch, engine_of


def saving(settings: Settings) -> Iterator[Comparison]:
    """C13: a save of the model of C6 as `train.py` makes it. The stall is for how long the run
    stands still; the rest, synced, checksummed and read back, is done beside the steps that follow.
    Into the machine's temporary folder: another disk, another figure."""
    time = settings.size(2048, 512)
    model = our_model(settings)
    engine, state = engine_of(model), TrainState()

    def step(batch: Batch) -> None:
        train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)

    with TemporaryDirectory() as folder:
        saver = Saver(engine, Path(folder), CheckpointConfig(), {}, patience=600)

        def save(batch: Batch, wait: bool) -> None:
            state.step += 1  # from the third on, a save deletes an older one, as in a run
            saver.save(state, {}, wait=wait)

        def check(inputs: tuple, outputs: None) -> float:
            """How far the weights that are read back after another step are from those saved."""
            saved = [weight.clone() for weight in gather_weights(engine).values()]
            step(*inputs)
            saver.finish()
            load_checkpoint(engine, Path(folder))
            return relative_error(list(gather_weights(engine).values()), saved)

        contenders = {
            "model step": Contender(step, base=True),
            "saving a checkpoint, the stall": Contender(
                partial(save, wait=False), prepare=lambda _: saver.finish()
            ),
            "saving a checkpoint, whole": Contender(
                partial(save, wait=True), check=check, prepare=lambda _: saver.finish()
            ),
        }
        title = f"train step of T {time}, and a checkpoint of {count_parameters(model):,} weights"
        yield Comparison(title, contenders, partial(draw_batch, settings, time))
        saver.finish()
