"""C13: the loader that has to keep ahead of the step, and the checkpoint that it waits for.

Reading from prepared shards is in from_shards.py, saving in saving.py.
"""

import atexit
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data.config import DataConfig, SourceKind
from data.opening import open_data
from data.share import Share
from data.tokenizer import TokenizerConfig
from retnet.kernels import select_kernels
from retnet.models.build import ModelConfig, build_model
from retnet.training.step import train_step
from tests.benchmarks.from_shards import reading, remembering
from tests.benchmarks.measure import Case, Comparison, Contender, Settings
from tests.benchmarks.models import our_config
from tests.benchmarks.saving import saving
from tests.benchmarks.steps import RATE, Batch, engine_of


def data_config(settings: Settings) -> DataConfig:
    """The quickstart's text; in a quick run a small part of it, leaving no tokenizer behind."""
    if not settings.quick:
        return DataConfig()
    files = str(Path(json.__file__).parent / "*.py")
    cache = TemporaryDirectory()
    atexit.register(cache.cleanup)
    return DataConfig(
        kind=SourceKind.files,
        files=files,
        streams=2,
        validation_fraction=0.2,
        cache=cache.name,
    )


def pieces(settings: Settings) -> TokenizerConfig:
    """The quickstart's tokenizer, or a small one."""
    return TokenizerConfig(vocab_size=settings.size(4096, 1000))


def feeding(settings: Settings) -> Iterator[Comparison]:
    """C13: a row from the loader beside the step that consumes it, as on a rank of the quickstart,
    which has two: the smaller the model, the more the loader has to do."""
    time, rows, turn = settings.size(512, 64), 4, settings.size(128, 2)
    config = our_config(settings) if settings.quick else ModelConfig()
    engine = engine_of(build_model(config, select_kernels(), seed=0))
    share = Share(time, 2 * rows, rows, rank=0, world_size=2)
    loader = open_data(data_config(settings), pieces(settings), seed=0, share=share)

    def draw() -> tuple[Batch]:
        tokens = torch.randint(config.vocab_size, (rows, time + 1))
        return ({"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:].clone()},)

    def step(batch: Batch) -> None:
        train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)

    with closing(loader):
        steps = loader.steps(0)

        def load(batch: Batch) -> None:
            for _ in range(turn):
                next(steps)

        contenders = {
            "model step": Contender(step, base=True, parts=rows),
            "loader": Contender(load, parts=rows * turn),
        }
        yield Comparison(f"one row of {time} tokens", contenders, draw)


CASES = (
    Case(
        "c13",
        "loader beside the quickstart's model, shards beside text, checkpoint beside C6's",
        lambda settings: chain(
            feeding(settings),
            reading(settings, data_config(settings), pieces(settings)),
            remembering(settings, data_config(settings), pieces(settings)),
            saving(settings),
        ),
        threads=2,
    ),
)
