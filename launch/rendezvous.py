"""Where the processes of a run meet: on the address that the launcher named, and on no other.

torch's own store listens on every address of the machine; whoever reaches its port can write into
it. Here rank 0 listens on MASTER_ADDR alone, and gloo and NCCL are told the interface that leads
there: left alone they take what the machine's name stands for, often 127.0.0.1.
"""

import array
import fcntl
import os
import socket
import struct
from datetime import timedelta

from torch.distributed import TCPStore

# An address that is nobody's (RFC 5737): asking the way to it sends nothing.
SOMEWHERE = "192.0.2.1"
SIOCGIFCONF = 0x8912
ENTRY = 40  # bytes of a `struct ifreq` on 64-bit Linux: name [16], family [2], port [2], address


def meet(rank: int, world_size: int, patience: timedelta, several_machines: bool) -> TCPStore:
    """The store of all processes, by MASTER_ADDR and MASTER_PORT: rank 0 makes it, the others come.

    On rank 0 it listens on MASTER_ADDR. RuntimeError where that is no address of this machine, or
    where the port is taken.
    """
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank != 0:
        return TCPStore(master, port, world_size, is_master=False, timeout=patience)
    address = _own_address(master, several_machines)
    try:
        listener = socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
    except OSError as error:
        raise RuntimeError(
            f"rank 0 cannot listen on {address}, port {port} ({error.strerror}): MASTER_ADDR="
            f"{master} must be an address of rank 0's machine, and MASTER_PORT free there"
        ) from error
    # the store closes it; the port is the listener's, whatever is said here
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=patience,
        master_listen_fd=listener.detach(),
    )


def choose_interface(named: str, several_machines: bool) -> str | None:
    """The network interface that ranks talk over: the one named, or the one that leads to
    MASTER_ADDR. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME get it where they are not set. None where
    none is found (IPv6).

    ValueError where this machine has none of that name.
    """
    if named and named not in addresses():
        raise ValueError(
            f"limits.interface={named} is no network interface of this machine; it has "
            f"{', '.join(sorted(addresses()))}"
        )
    found = named or _interface_of(_own_address(os.environ["MASTER_ADDR"], several_machines))
    if found:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", found)
    return found


def addresses() -> dict[str, str]:
    """This machine's interfaces that are up, each with its first IPv4 address."""
    room = array.array("B", bytes(ENTRY * 256))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        question = struct.pack("iL", len(room), room.buffer_info()[0])
        size = struct.unpack("iL", fcntl.ioctl(probe, SIOCGIFCONF, question))[0]
    found: dict[str, str] = {}
    for at in range(0, size, ENTRY):
        entry = room[at : at + ENTRY].tobytes()
        name = entry[:16].split(b"\0")[0].decode().partition(":")[0]
        found.setdefault(name, socket.inet_ntoa(entry[20:24]))
    return found


def _interface_of(address: str) -> str | None:
    return next((name for name, own in addresses().items() if own == address), None)


def _own_address(master: str, several_machines: bool) -> str:
    """This machine's address on the way to `master`; for an address of its own, that one."""
    try:
        target = str(socket.getaddrinfo(master, None, type=socket.SOCK_DGRAM)[0][4][0])
    except OSError as error:
        raise RuntimeError(f"MASTER_ADDR={master} is no address ({error.strerror})") from error
    if several_machines and target.startswith("127."):
        # On rank 0's machine its own name may stand for 127.0.1.1, where nobody else can come
        target = SOMEWHERE
    return _way_to(target) or target


def _way_to(address: str) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
        except OSError:  # no way there
            return None
