"""Starts the workers of a distributed test as real processes and collects what they found out."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch

from tests import forked


def start(
    scenario: str, world_size: int, folder: Path, *, module: str = "workers", **arguments: Any
) -> list[forked.Forked]:
    """One process per rank, running `scenario` of a module beside this, or of one named whole; they
    meet over gloo."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = module if "." in module else f"tests.retnet.training.{module}"
    command = ["-m", module, scenario, str(folder), json.dumps(arguments)]
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        processes.append(forked.start(*command, folder=folder, env=environment, merged=True))
    return processes


def run(scenario: str, world_size: int, folder: Path, **arguments: Any) -> list[Any]:
    """What each rank returned, by rank; AssertionError with the output of one that failed."""
    processes = start(scenario, world_size, folder, **arguments)
    deadline = time.monotonic() + 150
    try:
        outputs = [
            process.communicate(timeout=max(deadline - time.monotonic(), 1))[0]
            for process in processes
        ]
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank}:\n{outputs[rank]}"
    return [
        torch.load(folder / f"{scenario}-{rank}.pt", weights_only=False)
        for rank in range(world_size)
    ]
