"""The second half of C13: what saving a checkpoint costs beside the step that waits for it."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from retnet.models.build import count_parameters
from retnet.training.checkpoint import load_checkpoint, save_checkpoint
from retnet.training.engine import gather_weights
from retnet.training.state import TrainState
from retnet.training.step import train_step
from tests.benchmarks.measure import Comparison, Contender, Settings, relative_error
from tests.benchmarks.models import our_model
from tests.benchmarks.steps import RATE, Batch, draw_batch, engine_of


def saving(settings: Settings) -> Iterator[Comparison]:
    """C13: a whole save of the model of C6, synced and checksummed, as `train.py` makes it: the run
    stands still for so long. Into the machine's temporary folder: another disk, another figure."""
    time = settings.size(2048, 512)
    model = our_model(settings)
    engine, state = engine_of(model), TrainState()

    def step(batch: Batch) -> None:
        train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)

    with TemporaryDirectory() as folder:

        def save(batch: Batch) -> None:
            state.step += 1  # from the third on, a save deletes an older one, as in a run
            with redirect_stdout(io.StringIO()):
                save_checkpoint(engine, state, Path(folder), config={})

        def check(inputs: tuple, outputs: None) -> float:
            """How far the weights that are read back after another step are from those saved."""
            saved = [weight.clone() for weight in gather_weights(engine).values()]
            step(*inputs)
            with redirect_stdout(io.StringIO()):  # DeepSpeed prints what it does
                load_checkpoint(engine, Path(folder))
            return relative_error(list(gather_weights(engine).values()), saved)

        contenders = {
            "model step": Contender(step, base=True),
            "saving a checkpoint, synchronous": Contender(save, check=check),
        }
        title = f"train step of T {time}, and a checkpoint of {count_parameters(model):,} weights"
        yield Comparison(title, contenders, partial(draw_batch, settings, time))
