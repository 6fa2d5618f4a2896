"""A run's port is open where the launcher said, and nowhere else."""

import json
import os
import socket
from pathlib import Path

import pytest

from launch.rendezvous import addresses, choose_interface
from tests import forked

PROGRAM = """
import json, os
from pathlib import Path
from launch import world as launched

world = launched.join_world()
found = {"everybody": world.gather(world.rank), "gloo": os.environ["GLOO_SOCKET_IFNAME"]}
port = f"{int(os.environ['MASTER_PORT']):04X}"
lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").open()]
found["listens"] = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(port)]
folder = Path(os.environ["RUN_FOLDER"])
launched.check_shared(world, folder / "shared")
launched.SHARED_WITHIN = 0.5
try:
    launched.check_shared(world, folder / f"own-{world.rank}")
    found["refused"] = None
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
launched.leave_world()
"""


@pytest.mark.parametrize("master", ["127.0.0.1", "localhost"])
def test_the_meeting_place_is_the_address_that_was_named(master: str, tmp_path: Path) -> None:
    """And the ranks look for rank 0's mark in the run folder, which must be the same for all."""
    for name in ("shared", "own-0", "own-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "session").write_text(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": master}
        who |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1, "RUN_FOLDER": tmp_path}
        environment = {k: v for k, v in os.environ.items() if not k.endswith("SOCKET_IFNAME")}
        environment |= {key: str(value) for key, value in who.items()}
        ranks.append(forked.start("-c", PROGRAM, folder=tmp_path, env=environment))
    found = [json.loads(rank.communicate(timeout=60)[0]) for rank in ranks]
    for each in found:
        assert each["everybody"] == [0, 1] and each["gloo"] == "lo"
        # the kernel writes addresses as bytes in its own order: 127.0.0.1 and ::1
        (listener,) = each["listens"]
        assert listener.rpartition(":")[0] in ("0100007F", "00000000000000000000000001000000")
        assert "(rank 1) is not the folder that rank 0 writes" in each["refused"]


def test_an_interface_is_found_or_named_and_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert addresses()["lo"] == "127.0.0.1"
    for library in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{library}_SOCKET_IFNAME", "set by the user")
    for own, name in ((address, name) for name, address in addresses().items()):
        monkeypatch.setenv("MASTER_ADDR", own)
        assert addresses()[choose_interface("", several_machines=False)] == own, name
    assert choose_interface("lo", several_machines=True) == "lo"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "set by the user"
    with pytest.raises(ValueError, match="limits.interface=eth77"):
        choose_interface("eth77", several_machines=True)
