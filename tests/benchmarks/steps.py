"""C6, C7, C8 and C13: the training step through the engine, what the engine adds to a bare loop,
the optimizer alone, and the loader that has to keep ahead."""

import atexit
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.loader import Loader
from data.prepare import prepare
from data.sources import DataConfig, SourceKind
from data.tokenizer import TokenizerConfig
from launch.world import join_world
from retnet.training.engine import EngineConfig, Precision, gather_weights, start_engine
from retnet.training.optimizer import OptimizerConfig, build_optimizer
from retnet.training.step import StepResult, train_step
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error
from tests.benchmarks.models import (
    Logits,
    WithLoss,
    llama,
    llama_flops,
    logits_error,
    our_config,
    our_flops,
    our_model,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

RATE = 1e-4
OPTIMIZER = OptimizerConfig(learning_rate=RATE, gradient_clipping=1.0)
Batch = dict[str, Tensor]


def engine_of(module: nn.Module) -> "DeepSpeedEngine":
    """Our engine in bfloat16 at ZeRO stage 1, one sequence a step, one process."""
    if not dist.is_initialized():
        join_world()
    engine_config = EngineConfig(stage=1, dtype=Precision.bfloat16)
    with redirect_stdout(io.StringIO()):  # DeepSpeed prints its memory, the table is ours
        return start_engine(
            module,
            OPTIMIZER,
            engine_config,
            global_batch_size=1,
            micro_batch_size=1,
            device=torch.device("cpu"),
        )


def draw_batch(settings: Settings, time: int) -> tuple[Batch]:
    """One sequence of random tokens."""
    tokens = torch.randint(our_config(settings).vocab_size, (1, time + 1))
    return ({"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:].clone()},)


def step_contender(
    settings: Settings,
    build: Callable[[], nn.Module],
    work: float | None = None,
    truth: Callable[[], nn.Module] | None = None,
    base: bool = False,
) -> Contender:
    """Steps of the model that `build` builds, ids to logits; judged by `truth`'s logits."""
    engine = engine_of(WithLoss(build()))

    def run(batch: Batch) -> StepResult:
        return train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)

    def check(inputs: tuple, result: StepResult) -> float:
        vocabulary = our_config(settings).vocab_size
        return logits_error(engine.module.logits, truth or build, vocabulary)

    return Contender(run, base=base, check=check, work=work)


def our_step(settings: Settings, time: int) -> Contender:
    """Ours; the parallel form in float64 is the truth about the chunkwise one."""
    return step_contender(
        settings,
        lambda: Logits(our_model(settings)),
        work=our_flops(our_model(settings), time),
        truth=lambda: Logits(our_model(settings), forward_mode="parallel"),
        base=True,
    )


def whole_steps(settings: Settings) -> Iterator[Comparison]:
    """C6: ours beside Llama and the named peers, in the same engine with the same step."""
    for time, parallel in ((settings.size(2048, 512), True), (settings.size(8192, 1024), False)):
        ours = our_step(settings, time)
        contenders = {"ours": ours}
        flops = llama_flops(llama(settings), time)
        contenders["Llama, SDPA"] = step_contender(settings, lambda: Logits(llama(settings)), flops)
        config = our_model(settings).config
        for peer in settings.peers.values():
            for name, build in peer.models(config).items():
                if parallel or "parallel" not in name:
                    contenders[name] = step_contender(settings, build, ours.work)
        title = f"train step, bfloat16, T {time}, batch 1, ZeRO-1"
        yield Comparison(title, contenders, partial(draw_batch, settings, time), "bfloat16")


def bare_loop(settings: Settings) -> Contender:
    """The same step written out: bfloat16 weights, float32 masters, clipping, fused AdamW."""
    model = WithLoss(Logits(our_model(settings)))
    optimizer = build_optimizer(model, OPTIMIZER)  # its groups hold the float32 weights
    weights = list(model.parameters())
    masters = [nn.Parameter(weight.detach().clone()) for weight in weights]
    for group in optimizer.param_groups:
        places = {id(weight): master for weight, master in zip(weights, masters, strict=True)}
        group["params"] = [places[id(weight)] for weight in group["params"]]
    model.bfloat16()

    def run(batch: Batch) -> float:
        targets = torch.tensor(float(batch["shift_labels"].numel()))
        loss = model(**batch, num_items_in_batch=targets).loss
        loss.backward()
        for weight, master in zip(weights, masters, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, OPTIMIZER.gradient_clipping)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        return loss.item()

    def check(inputs: tuple, loss: float) -> float:
        truth = partial(Logits, our_model(settings), forward_mode="parallel")
        return logits_error(model.logits, truth, our_config(settings).vocab_size)

    return Contender(run, check=check)


def overhead(settings: Settings) -> Iterator[Comparison]:
    """C7: how much longer our step is than the bare loop (a ratio below 1: by that much)."""
    time = settings.size(2048, 512)
    contenders = {"our engine and step": our_step(settings, time)}
    contenders["bare loop"] = bare_loop(settings)
    title = f"train step, bfloat16, T {time}, batch 1"
    yield Comparison(title, contenders, partial(draw_batch, settings, time), "bfloat16")


class Given(nn.Module):
    """Weights [N, M] each, with a loss whose gradient is what it is given."""

    def __init__(self, count: int, side: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(side, side) for _ in range(count))

    def forward(self, gradients: list[Tensor]) -> SimpleNamespace:
        pairs = zip(self.weights, gradients, strict=True)
        return SimpleNamespace(loss=sum((weight * gradient).sum() for weight, gradient in pairs))


def optimizers(settings: Settings) -> Iterator[Comparison]:
    """C8: clip and update 50 million bfloat16 weights with float32 masters and moments."""
    count, side = settings.size(12, 2), settings.size(2048, 64)
    shapes, work = count * [(side, side)], 30.0 * count * side**2
    torch.manual_seed(0)
    start = Given(count, side).bfloat16().state_dict()

    module = Given(count, side)
    module.load_state_dict(start)
    engine = engine_of(module)

    def backward(gradients: list[Tensor]) -> None:
        engine.backward(engine(gradients).loss)

    def step(gradients: list[Tensor]) -> None:
        engine.step()

    weights = list(start.values())
    masters = [nn.Parameter(weight.float()) for weight in weights]
    plain = torch.optim.AdamW(masters, RATE, (0.9, 0.95), weight_decay=0.1, fused=True)

    def take(gradients: list[Tensor]) -> None:
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient.float()

    def plain_step(gradients: list[Tensor]) -> None:
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        plain.step()
        torch._foreach_copy_(weights, [master.detach() for master in masters])

    before = [weight.double() for weight in start.values()]

    def check(now: Callable[[], Iterable[Tensor]], inputs: tuple, outputs: None) -> float:
        """How far the first update of the float32 weights is from AdamW's in float64."""
        wide = [nn.Parameter(weight.clone()) for weight in before]
        for weight, gradient in zip(wide, inputs[0], strict=True):
            weight.grad = gradient.double()
        torch.nn.utils.clip_grad_norm_(wide, 1.0)
        torch.optim.AdamW(wide, RATE, (0.9, 0.95), weight_decay=0.1).step()
        found, right = (
            [a.detach() - b for a, b in zip(x, before, strict=True)] for x in (now(), wide)
        )
        return relative_error(found, right)

    contenders = {
        "our engine's step": Contender(
            step, True, partial(check, lambda: gather_weights(engine).values()), backward, work=work
        ),
        "torch AdamW fused, clip_grad_norm_": Contender(
            plain_step, False, partial(check, lambda: masters), take, work=work
        ),
    }
    title = f"{count * side**2:,} weights; ceiling: 30 bytes a weight at the speed of a copy"
    yield Comparison(
        title, contenders, lambda: ([torch.randn(s).bfloat16() for s in shapes],), "copy"
    )


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


def feeding(settings: Settings) -> Iterator[Comparison]:
    """C13: one row from the loader beside the step that consumes it."""
    time, rows = settings.size(2048, 512), settings.size(256, 4)
    loader = Loader(
        (data := data_config(settings)),
        *prepare(data, TokenizerConfig(vocab_size=settings.size(4096, 1000))),
        seed=0,
        sequence_length=time,
        global_batch_size=1,
        micro_batch_size=1,
        rank=0,
        world_size=1,
    )
    with closing(loader):
        steps = loader.steps(0)

        def load(batch: Batch) -> None:
            for _ in range(rows):
                next(steps)

        contenders = {"model step": our_step(settings, time), "loader": Contender(load, parts=rows)}
        title = f"one row of {time} tokens"
        yield Comparison(title, contenders, partial(draw_batch, settings, time))


CASES = (
    Case("c6", "training step of 23 million parameters", whole_steps, threads=2),
    Case("c7", "engine and step beside a bare loop", overhead, threads=2),
    Case("c8", "optimizer step", optimizers, threads=2),
    Case("c13", "loader beside the model", feeding, threads=2),
)
