"""The processes of a run and how they join: one process, torchrun or the DeepSpeed launcher.

All three say who a process is by the same environment variables (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT); without them a process is alone. Not here: engines, data, config.
"""

import os
import re
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# How long a process waits for the others: one may be training a tokenizer, or reading slow disks.
# The libraries' own 10 minutes are too short for that.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """Who this process is among all."""

    rank: int
    "Of all processes, from 0."
    local_rank: int
    "Among those of this machine, from 0."
    world_size: int
    "Processes in all."
    device: torch.device
    "What this process computes on."

    @property
    def is_main(self) -> bool:
        """True on the one process that talks and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process gets the same answer. Collective."""
        word = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
        return bool(word.item())

    def gather(self, value: object) -> list:
        """Every process's value, in the order of ranks, on every process. Collective."""
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def agree(self, problem: str | None) -> None:
        """Raises ValueError on every process with the first problem that any has. Collective."""
        for found in self.gather(problem):
            if found:
                raise ValueError(found)


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher. Touches no device."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's rank as the launcher said it; 0 without a launcher. Touches no device."""
    return int(os.environ.get("RANK", 0))


def without_local_rank(arguments: list[str]) -> list[str]:
    """Command line arguments less the `--local_rank=N` that the DeepSpeed launcher puts in front.

    Takes `--local_rank=N`, `--local_rank N` and both with a dash. What they say becomes LOCAL_RANK
    where the launcher did not set it.
    """
    kept = []
    remaining = iter(arguments)
    for argument in remaining:
        match = re.fullmatch(r"--local[_-]rank(?:=(\d+))?", argument)
        if match:
            os.environ.setdefault("LOCAL_RANK", match[1] or next(remaining, "0"))
        else:
            kept.append(argument)
    return kept


def join_world() -> World:
    """Joins the other processes: nccl between GPUs, gloo between CPUs. Collective.

    Raises RuntimeError where a machine has fewer GPUs than processes.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"local rank {local_rank} has no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; start at most that many processes on it"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif world_size() > 1:
        # Several processes share this machine's cores; without a word from the launcher each
        # would start a thread for every core.
        # torchrun and DeepSpeed name the number of processes on one machine differently.
        local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // int(local_size or world_size())))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed will not start without it
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return World(rank(), local_rank, dist.get_world_size(), device)


def leave_world() -> None:
    """Leaves the other processes; call it once, last."""
    dist.destroy_process_group()
