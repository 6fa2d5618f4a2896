"""G10, G13 and G15: on a GPU, the training step of a RetNet of 1.3B parameters through the engine,
beside Llama of as many and other RetNets that are installed, all compiled, and what each takes.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from retnet.kernels import select_kernels
from retnet.models.build import Architecture, ModelConfig, build_model, count_parameters
from retnet.training.step import read_steps, train_step
from tests.benchmarks.gpu import DEVICE, peak, peer
from tests.benchmarks.measure import Case, Comparison, Contender, Settings
from tests.benchmarks.models import Logits, WithLoss, compile_layers, llama_flops, our_flops
from tests.benchmarks.steps import RATE, Batch, engine_of

PRESET = Path(__file__).parents[2] / "configs" / "model" / "retnet_xl_1b3.yaml"
TOY = {"hidden_size": 32, "num_heads": 2, "value_dim": 64, "intermediate_size": 64}


def our_1b3(settings: Settings) -> nn.Module:
    """The preset on the kernels of this device."""
    sizes = yaml.safe_load(PRESET.read_text()) | {"vocab_size": settings.size(32000, 64)}
    if settings.quick:
        sizes |= TOY | {"num_layers": 1, "chunk_size": 16}
    sizes["architecture"] = Architecture(sizes["architecture"])
    return build_model(ModelConfig(**sizes), select_kernels(device=DEVICE), seed=0)


def llama_1b3(settings: Settings) -> LlamaForCausalLM:
    """As wide and as deep, with a feed-forward that makes up for the other weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.size(32000, 64),
            hidden_size=settings.size(2048, 32),
            num_hidden_layers=settings.size(24, 1),
            num_attention_heads=settings.size(16, 2),
            intermediate_size=settings.size(5504, 64),
            max_position_embeddings=8192,
            attn_implementation="sdpa",
        )
    )


def fla_1b3(settings: Settings) -> nn.Module:
    """flash-linear-attention's RetNet of the same sizes; its classes register themselves."""
    config = AutoConfig.for_model(
        "retnet",
        vocab_size=32000,
        hidden_size=2048,
        num_hidden_layers=24,
        num_heads=8,
        expand_v=2,
        intermediate_size=3456,
        fuse_cross_entropy=False,
    )
    return AutoModelForCausalLM.from_config(config)


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
    Case("g10", "training step of 1.3 billion parameters, 65,536 tokens", partial(steps, rows=8)),
    Case("g13", "the same with 8,192 tokens", partial(steps, rows=1)),
)
