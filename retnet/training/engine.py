"""DeepSpeed, started in one place: precision, ZeRO stage and batch sizes become its JSON here.

Nothing outside this room sees DeepSpeed's configuration, and nothing here knows the model. Every
stage keeps float32 master weights and sums gradients in float32, over micro-steps and over ranks,
so that the stages take the same step: 1 to 3 by DeepSpeed's own wrappers, 0 by `replicated.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retnet.training.compile import Compile
from retnet.training.norm_limit import install_norm_limit
from retnet.training.optimizer import OptimizerConfig, Update, build_optimizer
from retnet.training.pieces import check_engine
from retnet.training.recompute import ActivationCheckpointing
from retnet.training.replicated import ReplicatedOptimizer
from retnet.training.zero_step import install_fused_step

if TYPE_CHECKING:  # imported where it is used: it looks for devices, and talks, on import
    from deepspeed import DeepSpeedEngine


class Precision(Enum):
    """What the module computes in. Lower case, because that is how YAML says it."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@dataclass
class EngineConfig:
    """How the work of a step is shared out over devices."""

    stage: int = 1
    """ZeRO stage: what is split over the ranks. 0 nothing, 1 optimizer state and master weights,
    2 gradients too, 3 weights too."""
    dtype: Precision = Precision.auto
    """What the module computes in; auto is bfloat16 where the hardware multiplies it natively
    and float32 elsewhere. Master weights and gradient sums are float32 in any case."""
    offload_optimizer: bool = False
    """Keep optimizer state and master weights in host memory; needs stage 1, 2 or 3."""
    reduce_bucket_size: int = 50_000_000
    """Gradient elements reduced over the ranks in one message."""
    allgather_bucket_size: int = 50_000_000
    """Weight elements gathered from the ranks in one message (stages 1 and 2), and fetched ahead
    (stage 3)."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass still runs (stages 2 and 3, on a GPU)."""
    compile: Compile = Compile.auto
    """Compile each layer: on, off (always at stage 3), or auto, where the run is long enough to
    win back the tens of seconds that it costs."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.auto
    """What a layer keeps for its backward pass: none recomputes nothing, selective all but the
    outputs of linear layers, block everything; auto takes none where it fits into memory, else
    selective."""

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"engine.stage is {self.stage}; ZeRO has the stages 0, 1, 2 and 3.")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError(
                "engine.offload_optimizer is true and engine.stage is 0; only a ZeRO stage "
                "offloads its optimizer: set engine.stage to 1, 2 or 3, or engine=offload."
            )
        if self.dtype is Precision.float16 and self.stage == 0:
            raise ValueError(
                "engine.dtype is float16 and engine.stage is 0; only a ZeRO stage scales the "
                "loss: set engine.stage to 1, 2 or 3, or engine.dtype to bfloat16 or float32."
            )
        if self.compile is Compile.on and self.stage == 3:
            raise ValueError(
                "engine.compile is on and engine.stage is 3, whose hooks fetch weights in the "
                "middle of what would be compiled; set engine.stage to 0, 1 or 2, or "
                "engine.compile to auto or off."
            )
        for name in ("reduce_bucket_size", "allgather_bucket_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} is {getattr(self, name)}; it must be at least 1.")

    def choose_update(self, optimizer: OptimizerConfig, dtype: torch.dtype) -> tuple[Update, str]:
        """Who updates the weights of a module of `dtype`, and that in words for the run's line."""
        reasons = {
            "engine.stage=3": self.stage == 3,
            "engine.offload_optimizer=true": self.offload_optimizer,
            "engine.dtype=float16": dtype == torch.float16,
        }
        reason = next((f" ({words})" for words, holds in reasons.items() if holds), "")
        if optimizer.update is Update.fused and not reason:
            return Update.fused, "fused update"
        return Update.stock, f"stock update{reason if optimizer.update is Update.fused else ''}"


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the module's weights and arithmetic on `device`.

    auto is bfloat16 where there are bfloat16 multipliers: on a GPU that torch says does not
    emulate them, on a CPU with AVX512-BF16, AMX or ARM's BF16 instructions; else float32.
    """
    if precision is not Precision.auto:
        return getattr(torch, precision.value)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        features = torch.cpu.get_capabilities()
        native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def deepspeed_config(
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """DeepSpeed's JSON, derived and never written by hand.

    Sizes are sequences; accumulation is `global / (micro * world)`. Stage 0 appears as plain
    float32 without clipping, whatever `dtype`: `ReplicatedOptimizer` does both there.

    Raises:
        ValueError: the global batch is not a whole number of micro-batches on every rank.
    """
    if global_batch_size % (micro_batch_size * world_size):
        raise ValueError(
            f"global_batch_size is {global_batch_size}, which is not a multiple of "
            f"micro_batch_size {micro_batch_size} times {world_size} ranks "
            f"({micro_batch_size * world_size}); change one of the three."
        )
    config: dict[str, Any] = {
        "train_batch_size": global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": global_batch_size // (micro_batch_size * world_size),
        "gradient_clipping": optimizer.gradient_clipping if engine.stage else 0.0,
        "zero_optimization": {"stage": engine.stage},
        # Ranks, like micro-steps, are summed in float32.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        # Its clock would stop the device before and after each step.
        "timers": {"throughput": {"enabled": False}},
    }
    if engine.stage == 0:
        return config
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
    elif dtype == torch.float16:
        config["fp16"] = {"enabled": True, "loss_scale": 0}  # 0: dynamic
    zero = config["zero_optimization"]
    zero["reduce_bucket_size"] = engine.reduce_bucket_size
    zero["allgather_bucket_size"] = engine.allgather_bucket_size
    zero["overlap_comm"] = engine.overlap_comm and engine.stage >= 2
    zero["contiguous_gradients"] = True
    if engine.stage == 3:
        zero["stage3_prefetch_bucket_size"] = engine.allgather_bucket_size
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
        # torch's fused AdamW runs on the host too; DeepSpeed's own would be compiled at start.
        config["zero_force_ds_cpu_optimizer"] = False
    return config


@contextmanager
def built_in_shards(engine_config: EngineConfig, device: torch.device) -> Iterator[None]:
    """Around the building of a module: at stage 3 each weight is split over the ranks as soon as
    its layer is built, so that no rank ever holds the whole; elsewhere nothing. Collective.

    The weights are cast to the resolved dtype. They are rank 0's numbers on every rank, if the
    module initializes gathered weights (transformers' models do).
    """
    if engine_config.stage < 3:
        yield
        return
    import deepspeed

    dtype = resolve_dtype(engine_config.dtype, device)
    ranks = dist.get_world_size()
    config: dict[str, Any] = {"train_batch_size": ranks, "zero_optimization": {"stage": 3}}
    # Its own `dtype` argument built bfloat16 when told float32; the config's keys are obeyed.
    config |= {"bf16": {"enabled": dtype == torch.bfloat16}}
    config |= {"fp16": {"enabled": dtype == torch.float16}}
    with deepspeed.zero.Init(config_dict_or_path=config):
        yield


def start_engine(
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    engine_config: EngineConfig,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    device: torch.device,
    adamw_step: Callable | None = None,
) -> DeepSpeedEngine:
    """The DeepSpeed engine around `module`; collective over the process group already joined.

    Weights are moved to `device` and cast to the resolved dtype in place, buffers keep their
    dtype, and rank 0's weights are given to every rank. Sizes are sequences. `adamw_step`: the
    fused update's kernel, None for torch's.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    dtype = resolve_dtype(engine_config.dtype, device)
    if dtype == torch.float16 and not get_accelerator().is_fp16_supported():
        raise ValueError(
            f"engine.dtype is float16, which this {device.type} does not compute; "
            "set engine.dtype to auto, bfloat16 or float32."
        )
    config = deepspeed_config(
        engine_config,
        optimizer_config,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        world_size=dist.get_world_size(),
        dtype=dtype,
    )
    # On a CPU DeepSpeed compiles a shared-memory operator at its first start (40 s, and a C++
    # compiler), which serves tensor-parallel inference alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module.to(device)
    update, _ = engine_config.choose_update(optimizer_config, dtype)
    how = {"gradient_clipping": optimizer_config.gradient_clipping, "operator": adamw_step}
    if engine_config.stage == 0:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)

        def optimizer(_: Any) -> ReplicatedOptimizer:  # called after rank 0's weights came
            inner = build_optimizer(module, optimizer_config)
            return ReplicatedOptimizer(inner, update=update, **how)
    else:
        optimizer = build_optimizer(module, optimizer_config)
    # DeepSpeed calls collectives by names that torch 2.13 calls old, and torch says so each time.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*is deprecated", FutureWarning)
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if update is Update.fused and engine_config.stage > 0:
        bucket = engine_config.reduce_bucket_size
        install_fused_step(engine.optimizer, reduce_bucket_size=bucket, **how)
    elif engine_config.stage > 0:
        install_norm_limit(engine.optimizer)
    check_engine(engine)
    return engine


def gather_weights(engine: DeepSpeedEngine) -> dict[str, Tensor] | None:
    """The full float32 master weights on the CPU of rank 0, None elsewhere; collective.

    Named as `module.named_parameters()` names them: tied names share one tensor, persistent
    buffers are included in their own dtype. One weight at a time is whole on the other ranks.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    first = dist.get_rank() == 0
    masters = engine.optimizer.masters() if engine.zero_optimization_stage() == 0 else None
    gathered: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        if id(parameter) not in gathered:
            if masters is None:
                full = safe_get_full_fp32_param(parameter)
            else:
                full = masters.get(parameter, parameter).detach()
            if first:
                gathered[id(parameter)] = full.detach().to("cpu", torch.float32, copy=True)
            else:
                gathered[id(parameter)] = full.new_empty(0)
        weights[name] = gathered[id(parameter)]
    if not first:
        return None
    buffers = dict(engine.module.named_buffers(remove_duplicate=False))
    for name, value in engine.module.state_dict().items():
        if name in buffers:
            weights[name] = value.detach().to("cpu", copy=True)
    return weights
