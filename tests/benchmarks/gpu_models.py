"""G10, G13 and G15: on a GPU, the training step of a RetNet of 1.3B parameters through the engine,
beside Llama of as many and other RetNets that are installed, all compiled, and what each takes.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from retnet.models.build import count_parameters
from retnet.training.step import read_steps, train_step
from tests.benchmarks.gpu import DEVICE, peak, peer
from tests.benchmarks.gpu_presets import fla_1b3, llama_1b3, our_1b3
from tests.benchmarks.measure import Case, Comparison, Contender, Settings
from tests.benchmarks.models import Logits, WithLoss, compile_layers, llama_flops, our_flops
from tests.benchmarks.steps import RATE, Batch, engine_of


def step_of(
    settings: Settings, rows: int, build: Callable[[Settings], nn.Module], ours: bool, work: float
) -> Contender:
    """Steps of a fresh model; ours with its own loss, the others with the loss from logits."""
    model = compile_layers(build(settings), settings)
    engine = engine_of(model if ours else WithLoss(Logits(model)), rows=rows, device=DEVICE)

    def run(batch: Batch) -> None:
        read_steps(engine, [train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)])

    return Contender(run, base=ours, work=work)


def pairs(settings: Settings, rows: int, time: int) -> Iterator[tuple[str, dict[str, Contender]]]:
    """Ours beside each of the others: two models at a time are what fits into the memory."""
    ours = rows * our_flops(our_1b3(settings), time)
    others = {"Llama, SDPA": (llama_1b3, rows * llama_flops(llama_1b3(settings), time))}
    if peer("fla.models", "RetNetConfig") is not None and not settings.quick:
        others["flash-linear-attention"] = (fla_1b3, ours)
    for name, (build, work) in others.items():
        yield (
            name,
            {
                "ours, compiled": step_of(settings, rows, our_1b3, True, ours),
                f"{name}, compiled": step_of(settings, rows, build, False, work),
            },
        )
        gc.collect()


def draw(settings: Settings, rows: int, time: int) -> tuple[Batch]:
    """Rows of random tokens."""
    tokens = torch.randint(settings.size(32000, 64), (rows, time + 1), device=DEVICE)
    return ({"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:].clone()},)


def steps(settings: Settings, rows: int) -> Iterator[Comparison]:
    """G10 and G13, and with them G15, the peak of memory."""
    rows, time = settings.size(rows, 1), settings.size(8192, 32)
    for name, contenders in pairs(settings, rows, time):
        parameters = count_parameters(our_1b3(settings))
        title = f"train step, {parameters:,} parameters, bfloat16, ZeRO-1, {rows} x {time}; {name}"
        given = partial(draw, settings, rows, time)
        yield Comparison(title, contenders, given, "bfloat16", device=DEVICE.type)
        if DEVICE.type == "cuda":
            yield Comparison(
                f"{title}: peak beyond the states",
                {n: Contender(partial(peak, c.run), c.base) for n, c in contenders.items()},
                given,
                unit="MiB",
            )


CASES = (
    Case(
        "g10",
        "training step of 1.3 billion parameters, 65,536 tokens",
        partial(steps, rows=8),
        minutes=6,
    ),
    Case("g13", "the same with 8,192 tokens", partial(steps, rows=1), minutes=6),
)
