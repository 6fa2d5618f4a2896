"""The processes of a run and how they join: one process, torchrun or the DeepSpeed launcher.

All three say who a process is by the same environment variables (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT); without them a process is alone. Not here: engines, data, config.
"""

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from launch.lock import mark_of
from launch.rendezvous import choose_interface, meet

T = TypeVar("T")

# How long a process waits for the others: one may be training a tokenizer, or reading slow disks.
# The libraries' own 10 minutes are too short for that.
PATIENCE = timedelta(hours=1)
# Seconds. A file that one machine wrote may be seen late by another.
SHARED_WITHIN = 30.0


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
    local_size: int = 1
    "Processes on this machine."

    @property
    def is_main(self) -> bool:
        """True on the one process that talks and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process gets the same answer. Collective."""
        word = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
        return bool(word.item())

    def largest(self, values: dict[str, float]) -> dict[str, float]:
        """The largest of each value over all processes, on every process. Collective."""
        words = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(words, op=dist.ReduceOp.MAX)
        return dict(zip(values, words.tolist(), strict=True))

    def gather(self, value: object) -> list:
        """Every process's value, in the order of ranks, on every process. Collective."""
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does `work` on one process of each machine, then on the others, which find what the
        first has left on the disk. A ValueError on any process stops all with its sentence.
        Collective."""
        result = problem = None
        for first in (True, False):
            try:
                if first == (self.local_rank == 0):
                    result = work()
            except ValueError as error:
                problem = f"{error} (rank {self.rank})" if self.rank else str(error)
            self.agree(problem)
        return result

    def agree(self, problem: str | None) -> None:
        """Raises ValueError on every process with the first problem that any has. Collective."""
        for found in self.gather(problem):
            if found:
                raise ValueError(found)


class Vote:
    """Asks every process something before each step, over the network alone: hosts wait for each
    other, which are all ahead of their devices, and no host waits for its device."""

    def __init__(self, world: World) -> None:
        """Collective."""
        self._alone = world.world_size == 1
        # A vote among GPUs would stand in line behind the kernels of the step before.
        other = world.device.type == "cuda" and not self._alone
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if other else None

    def any(self, flag: bool) -> bool:
        """Whether any process raises its flag at this call. Collective, and the same on every
        process."""
        if self._alone:
            return flag
        word = torch.tensor(int(flag))
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self._group)
        return bool(word)


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher. Touches no device."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's rank as the launcher said it; 0 without a launcher. Touches no device."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """The same among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


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


def join_world(interface: str = "") -> World:
    """Joins the other processes at MASTER_ADDR: nccl between GPUs, gloo between CPUs, over the
    network interface named or the one that leads there. Collective.

    Raises RuntimeError where a machine has fewer GPUs than processes or where rank 0 cannot listen
    on MASTER_ADDR, ValueError where there is no such interface.
    """
    here = local_rank()
    # torchrun and DeepSpeed name the number of processes on one machine differently.
    local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    local_size = int(local_size or world_size())
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if here >= torch.cuda.device_count():
            raise RuntimeError(
                f"local rank {here} has no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; start at most that many processes on it"
            )
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    elif world_size() > 1:
        # Several processes share this machine's cores; without a word from the launcher each
        # would start a thread for every core.
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // local_size))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        several = local_size < world_size()
        choose_interface(interface, several)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(backend, timeout=PATIENCE)  # torchrun itself listens
        else:
            store = meet(rank(), world_size(), PATIENCE, several)
            dist.init_process_group(
                backend, store=store, rank=rank(), world_size=world_size(), timeout=PATIENCE
            )
    else:
        os.environ["LOCAL_RANK"] = str(here)  # DeepSpeed will not start without it
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return World(rank(), here, dist.get_world_size(), device, local_size)


def check_shared(world: World, folder: Path) -> None:
    """Raises ValueError on every process where one does not see the run folder that rank 0 holds:
    all machines of a run write into one. Collective."""
    held = world.gather(mark_of(folder))[0]
    deadline = time.monotonic() + SHARED_WITHIN
    while (seen := mark_of(folder)) != held and time.monotonic() < deadline:
        time.sleep(0.2)
    problem = None
    if seen != held:
        problem = (
            f"{folder.absolute()} on {socket.gethostname()} (rank {world.rank}) is not the folder "
            "that rank 0 writes: runs/ must be one shared folder on all machines"
        )
    world.agree(problem)


def leave_world() -> None:
    """Leaves the other processes; call it once, last."""
    dist.destroy_process_group()
