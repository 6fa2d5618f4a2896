"""C6, C7 and C8: the training step through the engine, what the engine adds to a bare loop, and
the optimizer alone."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.world import join_world
from retnet.kernels import select_kernels
from retnet.training.engine import EngineConfig, Precision, gather_weights, start_engine
from retnet.training.optimizer import OptimizerConfig, Update, build_optimizer
from retnet.training.step import StepResult, read_steps, train_step
from tests.benchmarks.measure import Case, Comparison, Contender, Settings, relative_error
from tests.benchmarks.models import (
    Logits,
    WithLoss,
    compile_layers,
    llama,
    llama_flops,
    logits_error,
    our_config,
    our_flops,
    our_model,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CPU = torch.device("cpu")
RATE = 1e-4
OPTIMIZER = OptimizerConfig(learning_rate=RATE, gradient_clipping=1.0)
Batch = dict[str, Tensor]


def engine_of(
    module: nn.Module,
    optimizer: OptimizerConfig = OPTIMIZER,
    stage: int = 1,
    rows: int = 1,
    device: torch.device = CPU,
) -> "DeepSpeedEngine":
    """Our engine in bfloat16, `rows` sequences a step, one process."""
    if not dist.is_initialized():
        join_world()
    engine_config = EngineConfig(stage=stage, dtype=Precision.bfloat16)
    with redirect_stdout(io.StringIO()):  # DeepSpeed prints its memory, the table is ours
        return start_engine(
            module,
            optimizer,
            engine_config,
            global_batch_size=rows,
            micro_batch_size=rows,
            device=device,
            adamw_step=select_kernels(device=device).adamw_step,
        )


def draw_batch(settings: Settings, time: int) -> tuple[Batch]:
    """One sequence of random tokens."""
    tokens = torch.randint(our_config(settings).vocab_size, (1, time + 1))
    return ({"input_ids": tokens[:, :-1], "shift_labels": tokens[:, 1:].clone()},)


def step_contender(
    settings: Settings,
    module: nn.Module,
    logits: nn.Module,
    truth: Callable[[], nn.Module],
    work: float | None = None,
    base: bool = False,
) -> Contender:
    """Steps of `module`; `logits` is its function from ids to logits and judged by `truth`'s."""
    engine = engine_of(module)

    def run(batch: Batch) -> StepResult:
        queued = train_step(engine, [batch], learning_rate=RATE, seed=0, step=0)
        return read_steps(engine, [queued])[0]

    def check(inputs: tuple, result: StepResult) -> float:
        return logits_error(logits, truth, inputs[0]["input_ids"])

    return Contender(run, base=base, check=check, work=work)


def our_step(settings: Settings, time: int, compiled: bool = False) -> Contender:
    """Ours as train.py trains it; the parallel form in float64 is the truth about the chunkwise
    one."""
    model = our_model(settings)
    return step_contender(
        settings,
        compile_layers(model, settings) if compiled else model,
        Logits(model),
        truth=lambda: Logits(our_model(settings), forward_mode="parallel"),
        work=our_flops(model, time),
        base=True,
    )


def their_steps(
    settings: Settings, name: str, build: Callable[[], nn.Module], work: float
) -> dict[str, Contender]:
    """A peer's, ids to logits and then the loss as transformers has it; plain and compiled."""
    found = {}
    for title in (name, f"{name}, compiled"):
        logits = build() if title == name else compile_layers(build(), settings)
        found[title] = step_contender(settings, WithLoss(logits), logits, build, work)
    return found


def whole_steps(settings: Settings) -> Iterator[Comparison]:
    """C6: ours beside Llama and the named peers, in the same engine with the same update."""
    for time, parallel in ((settings.size(2048, 512), True), (settings.size(8192, 1024), False)):
        ours = our_step(settings, time)
        contenders = {"ours": ours, "ours, compiled": our_step(settings, time, compiled=True)}
        flops = llama_flops(llama(settings), time)
        contenders |= their_steps(settings, "Llama, SDPA", lambda: Logits(llama(settings)), flops)
        config = our_model(settings).config
        for peer in settings.peers.values():
            for name, build in peer.models(config).items():
                if parallel or "parallel" not in name:
                    contenders |= their_steps(settings, name, build, ours.work)
        title = f"train step, bfloat16, T {time}, batch 1, ZeRO-1"
        yield Comparison(title, contenders, partial(draw_batch, settings, time), "bfloat16")


def bare_loop(settings: Settings) -> Contender:
    """The same step written out: bfloat16 weights, float32 masters, clipping, fused AdamW."""
    model = our_model(settings)
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
        return logits_error(Logits(model), truth, inputs[0]["input_ids"])

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


def update_error(
    before: list[Tensor], now: Callable[[], Iterable[Tensor]], inputs: tuple, outputs: None
) -> float:
    """How far the first update of the float32 weights is from AdamW's in float64."""
    wide = [nn.Parameter(weight.clone()) for weight in before]
    for weight, gradient in zip(wide, inputs[0], strict=True):
        weight.grad = gradient.double()
    torch.nn.utils.clip_grad_norm_(wide, 1.0)
    torch.optim.AdamW(wide, RATE, (0.9, 0.95), weight_decay=0.1).step()
    found, right = ([a.detach() - b for a, b in zip(x, before, strict=True)] for x in (now(), wide))
    return relative_error(found, right)


def optimizers(settings: Settings) -> Iterator[Comparison]:
    """C8: clip and update 50 million bfloat16 weights with float32 masters and moments."""
    count, side = settings.size(12, 2), settings.size(2048, 64)
    shapes, work = count * [(side, side)], 30.0 * count * side**2
    torch.manual_seed(0)
    start = Given(count, side).bfloat16().state_dict()
    check = partial(update_error, [weight.double() for weight in start.values()])

    def engine_contender(update: Update, stage: int, base: bool = False) -> Contender:
        """The engine's step; its gradients are summed before the clock starts."""
        module = Given(count, side)
        module.load_state_dict(start)
        engine = engine_of(module, replace(OPTIMIZER, update=update), stage)

        def backward(gradients: list[Tensor]) -> None:
            engine.backward(engine(gradients).loss)

        def step(gradients: list[Tensor]) -> None:
            engine.step()

        found = partial(check, lambda: gather_weights(engine).values())
        return Contender(step, base, found, backward, work=work)

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

    contenders = {
        "our engine's step, ZeRO-1": engine_contender(Update.fused, 1, base=True),
        "our engine's step, ZeRO-2": engine_contender(Update.fused, 2),
        "DeepSpeed's own step (stock), ZeRO-1": engine_contender(Update.stock, 1),
        "DeepSpeed's own step (stock), ZeRO-2": engine_contender(Update.stock, 2),
        "torch AdamW fused, clip_grad_norm_": Contender(
            plain_step, False, partial(check, lambda: masters), take, work=work
        ),
    }
    title = f"{count * side**2:,} weights; ceiling: 30 bytes a weight at the speed of a copy"
    yield Comparison(
        title, contenders, lambda: ([torch.randn(s).bfloat16() for s in shapes],), "copy"
    )


CASES = (
    Case("c6", "training step of 23 million parameters", whole_steps, threads=2),
    Case("c7", "engine and step beside a bare loop", overhead, threads=2),
    Case("c8", "optimizer step", optimizers, threads=2),
)
