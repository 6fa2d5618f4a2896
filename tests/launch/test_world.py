"""Processes agree: on the worst value of a figure, and on the step to stop at."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests import forked

# A request is made by the last process only, at one call; the others come to it later or earlier.
PROGRAM = """
import json, sys, time
from launch import world as launched

world = launched.join_world()
found = {"largest": world.largest({"a": 1.0 + world.rank, "b": -3.0 * world.rank})}
asks = world.rank == world.world_size - 1
vote = launched.Vote(world)
found["heard"] = []
for call in range(8):
    time.sleep(0.02 * ((call + world.rank) % 2))
    found["heard"].append(vote.any(asks and call == 5))
print(json.dumps(found))
launched.leave_world()
"""


def answers(world_size: int, folder: Path) -> list[dict]:
    """What each process printed, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        who |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {key: str(value) for key, value in who.items()}
        processes.append(forked.start("-c", PROGRAM, folder=folder, env=environment))
    try:
        return [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_process_hears_of_a_request_at_the_same_call(world_size: int, tmp_path: Path) -> None:
    for process in answers(world_size, tmp_path):
        assert process["largest"] == {"a": float(world_size), "b": 0.0}
        assert process["heard"] == [call == 5 for call in range(8)]
