"""The processes of a run and how they join: one process, torchrun or the DeepSpeed launcher.

All three say who a process is by the same environment variables (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT); without them a process is alone. Not here: engines, data, config.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

# How long a process waits for the others: one may be training a tokenizer, or reading slow disks.
# The libraries' own 10 minutes are too short for that.
PATIENCE = timedelta(hours=1)
# Seconds. From here on a step is too long to take another one after a request to stop.
SLOW_STEP = 2.0


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
    """Asks every process something before each step and mostly hears the answer a step later, so
    that neither the host waits for its device nor the device for the host.

    Where steps are long, another one would come late for who asked to stop (DeepSpeed's launcher
    kills after 30 s), and waiting costs next to nothing: there the answer is that of this call.
    """

    def __init__(self, world: World) -> None:
        self._alone, self._device = world.world_size == 1, world.device
        self._words: torch.Tensor | None = None  # flag, seconds a step; on its way to the host
        self._arrive: Callable[[], object] = lambda: None  # waits until it is there
        self._asked_at = time.monotonic()
        self._slow = False

    def any(self, flag: bool) -> bool:
        """Whether any process raised its flag, at this call or at the one before; never later.
        Collective, and the same on every process."""
        if self._alone:
            return flag
        raised = self._read()
        self._ask(flag)
        return raised or (self._slow and self._read())

    def _ask(self, flag: bool) -> None:
        now = time.monotonic()
        # Fills, since a copy from the host would wait for the device. The slowest process's clock
        # counts, so that all agree on what is slow.
        words = torch.full((2,), now - self._asked_at, dtype=torch.float64, device=self._device)
        words[0].fill_(float(flag))
        self._asked_at = now
        work = dist.all_reduce(words, op=dist.ReduceOp.MAX, async_op=True)
        if self._device.type == "cuda":
            work.wait()  # makes the stream wait, not the host
            self._words = torch.empty(2, dtype=words.dtype, pin_memory=True)
            self._words.copy_(words, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arrive = event.synchronize
        else:
            self._words, self._arrive = words, work.wait

    def _read(self) -> bool:
        """The answer to the last question, if it was not read yet; False where it was."""
        if self._words is None:
            return False
        self._arrive()
        flag, seconds = self._words.tolist()
        self._words, self._slow = None, seconds > SLOW_STEP
        return bool(flag)


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
    # torchrun and DeepSpeed name the number of processes on one machine differently.
    local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    local_size = int(local_size or world_size())
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
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0))
            torch.set_num_threads(max(1, cores // local_size))
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed will not start without it
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return World(rank(), local_rank, dist.get_world_size(), device, local_size)


def leave_world() -> None:
    """Leaves the other processes; call it once, last."""
    dist.destroy_process_group()
