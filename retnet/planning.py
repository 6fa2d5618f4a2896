"""What a run would need and cost, told before it is started: `python train.py ... --plan`.

It composes from the config what retnet/plan counts; no process joins, no device computes and no
text is read. The numbers stand on arithmetic but for time and money, which stand on `plan.mfu`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from configs.schema import Config
from data.config import SourceKind
from data.index import NAME, Index
from data.share import check_ranks
from retnet.kernels import Backend
from retnet.plan.cost import Cost, bytes_in_words, cost_of, count_in_words, in_words
from retnet.plan.machine import Machine, find_machine
from retnet.plan.memory import SHARE_OF_DEVICE, Layout, Load, Memory, device_memory_of
from retnet.plan.skeleton import Skeleton, measure_skeleton
from retnet.training.compile import is_worth_compiling
from retnet.training.recompute import ActivationCheckpointing, keep_what_fits, state_bytes

STAGES = (0, 1, 2, 3)
COLUMNS = {
    "weights": 9,
    "gradients": 11,
    "optimizer": 11,
    "buckets": 9,
    "activations": 13,
    "recompute": 11,
    "logits": 8,
    "at most": 9,
}
"The parts of a `Memory` and the width of their columns."


class StagePlan(NamedTuple):
    """One ZeRO stage's row."""

    memory: Memory
    """Of the micro-batch that the config asks for."""
    keeps: ActivationCheckpointing
    largest: int
    """The largest micro-batch that fits, in rows; 0 where not even one row does."""


class Plan(NamedTuple):
    """Everything that `text` says."""

    config: Config
    devices: int
    machine: Machine
    skeleton: Skeleton
    stages: dict[int, StagePlan]
    """Those that the config's other keys allow."""
    cost: Cost
    data_tokens: int | None
    """Of one epoch; None where it is not known."""

    @property
    def rows(self) -> int:
        """The micro-batch that the config asks for."""
        return self.config.rows_at_once(self.devices)

    @property
    def tokens_per_step(self) -> int:
        """Over all devices."""
        return self.config.global_batch_size * self.config.sequence_length


def planned(config: Config, devices: int) -> Plan:
    """The plan of a run on so many devices. ValueError where its batch does not divide over them,
    or where a named device lacks its memory."""
    check_ranks(config.data, config.global_batch_size, config.micro_batch_size, devices)
    own_peak = config.logging.peak_flops
    machine = find_machine(config.plan, config.engine.dtype, own_peak, devices)
    skeleton = measure_skeleton(
        config.model, config.kernels.fused_projections, config.sequence_length, machine.dtype
    )
    stages = {
        stage: plan_stage(config, devices, machine, skeleton, stage)
        for stage in STAGES
        if is_allowed(config, machine.dtype, stage)
    }
    cost = cost_of(
        skeleton.flops * config.global_batch_size * config.sequence_length,
        config.steps,
        devices=devices,
        peak=machine.peak,
        mfu=config.plan.mfu,
        price=config.plan.price,
    )
    return Plan(config, devices, machine, skeleton, stages, cost, tokens_of_data(config))


def is_allowed(config: Config, dtype: torch.dtype, stage: int) -> bool:
    """Whether the config's other keys go with a stage."""
    return stage > 0 or not (config.engine.offload_optimizer or dtype == torch.float16)


def plan_stage(
    config: Config, devices: int, machine: Machine, skeleton: Skeleton, stage: int
) -> StagePlan:
    """What a stage needs for the micro-batch asked for, and the largest that fits it."""
    share = config.global_batch_size // devices
    memory, keeps = memory_of(
        config, devices, machine, skeleton, stage, config.rows_at_once(devices)
    )
    largest = 0
    for rows in (rows for rows in range(1, share + 1) if share % rows == 0):
        needed, _ = memory_of(config, devices, machine, skeleton, stage, rows)
        if needed.total <= SHARE_OF_DEVICE * machine.memory:
            largest = rows
    return StagePlan(memory, keeps, largest)


def memory_of(
    config: Config, devices: int, machine: Machine, skeleton: Skeleton, stage: int, rows: int
) -> tuple[Memory, ActivationCheckpointing]:
    """The memory of a micro-batch of so many rows, and what its blocks keep, as the run chooses."""
    engine, model = config.engine, config.model
    device = torch.device("cuda" if machine.is_gpu else "cpu")
    work = skeleton.flops * config.tokens / devices
    compiled = is_worth_compiling(engine.compile, stage, device, work)
    keeps = engine.activation_checkpointing
    if keeps is ActivationCheckpointing.auto:
        states = state_bytes(
            skeleton.total, machine.dtype, stage, devices, engine.offload_optimizer
        )
        whole = skeleton.kept[ActivationCheckpointing.none].of(rows)
        keeps = keep_what_fits(whole, states, machine.memory, compiled)
    copies = machine.is_gpu and config.kernels.loss is Backend.torch
    load = Load(
        rows,
        rows * config.sequence_length,
        skeleton.kept[keeps],
        skeleton.kept[ActivationCheckpointing.none],
        model.vocab_size,
        model.hidden_size,
        machine.dtype.itemsize + (4 if copies else 0),
    )
    layout = Layout(
        stage,
        machine.dtype,
        devices,
        engine.reduce_bucket_size,
        engine.allgather_bucket_size,
        accumulates=rows * devices < config.global_batch_size,
        overlaps=engine.overlap_comm and stage >= 2 and machine.is_gpu,
        offloads=engine.offload_optimizer,
        compiled=compiled,
        reserves=machine.is_gpu,
    )
    return device_memory_of(skeleton.total, load, layout), keeps


def tokens_of_data(config: Config) -> int | None:
    """Of one epoch: as `plan.data_tokens` says, else of prepared shards on this disk."""
    data = config.data
    if config.plan.data_tokens:
        return config.plan.data_tokens
    if data.kind is not SourceKind.prepared or not data.path or "://" in data.path:
        return None
    index = Path(data.path).expanduser() / NAME
    return Index.parse(index.read_bytes(), str(index)).tokens if index.is_file() else None


def text(plan: Plan) -> str:
    """The plan as one screen of plain text; memory in GB of 10^9 bytes."""
    return "\n".join([*_model(plan), "", *_memory(plan), "", *_run(plan)]) + "\n"


def _line(name: str, words: str) -> str:
    return f"{name:<16}{words}"


def _many(count: int, word: str, ending: str = "s") -> str:
    return f"{count:,} {word}{ending * (count != 1)}"


def _model(plan: Plan) -> list[str]:
    config, skeleton = plan.config, plan.skeleton
    share = skeleton.retention_flops / skeleton.flops
    dtype = str(plan.machine.dtype).removeprefix("torch.")
    parts = [
        _line(f"  {part}", f"{count:>17,}  {count / skeleton.total:6.1%}")
        for part, count in skeleton.parameters.items()
    ]
    return [
        f"{config.name} on {plan.devices} x {plan.machine.name}, {dtype}; nothing was started",
        "",
        _line("parameters", f"{skeleton.total:>17,}"),
        *parts,
        _line(
            "FLOPs a token",
            f"{skeleton.flops:>17,.0f}  forward and backward; {share:.1%} of it retention itself",
        ),
    ]


def _memory(plan: Plan) -> list[str]:
    machine, rows = plan.machine, plan.rows
    heads = [f"{name:>{width}}" for name, width in COLUMNS.items()]
    lines = [
        f"memory of one device in GB, {rows} x {plan.config.sequence_length:,} tokens at once; at "
        "most: the moment that needs most, not the sum",
        f"ZeRO{''.join(heads)}  largest micro batch",
    ]
    for stage, row in plan.stages.items():
        mark = ">" if stage == plan.config.engine.stage else " "
        listed = zip(row.memory, COLUMNS.values(), strict=True)
        numbers = "".join(f"{part / 1e9:{width}.3f}" for part, width in listed)
        largest = _many(row.largest, "row") if row.largest else "none fits"
        lines.append(f"{mark}  {stage}{numbers}  {largest}")
    own = plan.stages[plan.config.engine.stage]
    usable = SHARE_OF_DEVICE * machine.memory
    fits = "fits" if own.memory.total <= usable else "does not fit"
    kept = (f"{p.value} {k.of(rows) / 1e9:.3f}" for p, k in plan.skeleton.kept.items())
    return [
        *lines,
        f"{fits}: {own.memory.total / 1e9:.3f} of {usable / 1e9:.3f} GB "
        f"({SHARE_OF_DEVICE:.0%} of {machine.memory / 1e9:.4g} GB)",
        f"engine.activation_checkpointing here is {own.keeps.value}; activations, not compiled: "
        f"{', '.join(kept)} GB",
    ]


def _run(plan: Plan) -> list[str]:
    config, cost, keys = plan.config, plan.cost, plan.config.plan
    tokens, total = config.tokens, plan.skeleton.total
    accumulated = config.global_batch_size // (plan.rows * plan.devices)
    epochs = "epochs unknown: set plan.data_tokens"
    if plan.data_tokens:
        epochs = f"{tokens / plan.data_tokens:.2f} epochs of {plan.data_tokens:,} tokens"
    time = f"unknown: the peak of {plan.machine.name} is not known; set logging.peak_flops"
    money = "unknown without the time" if keys.price else "unknown: set plan.price"
    if cost.seconds is not None:
        peak = plan.machine.peak / 1e12
        time = f"{in_words(cost.step_seconds)} a step, {in_words(cost.seconds)} in all, at "
        time += f"plan.mfu={keys.mfu:g} of {peak:,.4g} TFLOP/s"
    if cost.money is not None:
        money = f"{keys.currency}{cost.money:,.2f} at {keys.currency}{keys.price:g} a device hour"
    checkpoint = 12 * total  # float32 masters and two moments
    kept = config.checkpoint.keep_last
    last = f"{bytes_in_words(kept * checkpoint)} for the last {kept}" if kept else "all are kept"
    return [
        _line(
            "step",
            f"{plan.tokens_per_step:,} tokens: {_many(config.global_batch_size, 'row')} of "
            f"{config.sequence_length:,}, as {_many(plan.devices, 'device')} x "
            f"{_many(accumulated, 'micro batch', 'es')} x {_many(plan.rows, 'row')}",
        ),
        _line(
            "run",
            f"{config.steps:,} steps, {count_in_words(tokens)} tokens, {tokens / total:.1f} for "
            f"each parameter; {epochs}",
        ),
        _line("time", time),
        _line("cost", money),
        _line(
            "disk",
            f"{bytes_in_words(checkpoint)} a checkpoint, {last}; {bytes_in_words(4 * total)} the "
            "exported model",
        ),
    ]
