"""The machines of a run: DeepSpeed's hostfile read and written, who of them answers, and its
command on some of them."""

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")
# Seconds. A host that takes the connection and then says nothing is no host either.
ANSWER = 20


class Host(NamedTuple):
    """One machine."""

    name: str
    "Its name or address, as ssh takes it."
    slots: int
    "Processes that may run there."


def parse_hostfile(file: Path) -> list[Host]:
    """The hosts of a file with a line `name slots=N` each; `#` begins a comment.

    ValueError where it cannot be read, names no host, or has a line of another form.
    """
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"the hostfile {file} cannot be read ({error.strerror})") from error
    hosts = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 else ""
        # a name that began with a dash would be an option of ssh
        if not slots.isdigit() or words[0].startswith("-"):
            raise ValueError(f"{file}: line {number} is {line!r}; needed: name slots=N")
        hosts.append(Host(words[0], int(slots)))
    if not hosts:
        raise ValueError(f"the hostfile {file} names no host")
    return hosts


def write_hostfile(file: Path, hosts: list[Host]) -> None:
    """The inverse of `parse_hostfile`, whole or not at all."""
    partial = file.with_name(f"{file.name}.tmp")
    partial.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts))
    partial.replace(file)


def ssh_command(host: str, port: int | None, command: str) -> list[str]:
    """`command`, a line of shell, on another machine, by the ssh that pdsh would use: with the
    options in PDSH_SSH_ARGS_APPEND. It asks for nothing and gives up where no host is."""
    more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    return [*SSH, *more, *(["-p", str(port)] if port else []), host, command]


def answering(hosts: list[Host], port: int | None) -> list[Host]:
    """Those hosts that run a command now, in their order; all are asked at once."""

    def answers(host: Host) -> bool:
        command = ssh_command(host.name, port, "true")
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        return [host for host, alive in zip(hosts, pool.map(answers, hosts), strict=True) if alive]


def option(command: list[str], *names: str) -> str | None:
    """The value of an option that stands before the script, said as `--x V` or `--x=V`."""
    words = command[: script_at(command)]
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(words[index + 1 :]), None)
    return None


def script_at(command: list[str]) -> int:
    """The index of the training script in a command; its length where there is none."""
    return next((at for at, word in enumerate(command) if word.endswith(".py")), len(command))


def on_hosts(command: list[str], hosts: list[Host], used: list[Host]) -> list[str]:
    """A `deepspeed` command on some of the hosts of its hostfile: it gets a file of those, beside
    the user's own, and another MASTER_ADDR where the one it names is of a host left out."""
    if used == hosts:
        return command
    file = Path(str(option(command, "--hostfile", "-H")))
    alive = file.with_name(f"{file.name}.alive")
    write_hostfile(alive, used)
    changes = {"--hostfile": str(alive), "-H": str(alive)}
    master = option(command, "--master_addr")
    if master in {host.name for host in hosts} - {host.name for host in used}:
        changes["--master_addr"] = used[0].name
    at, made = script_at(command), []
    words = iter(command[:at])
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in changes:
            made.append(word)
            continue
        if not equals:
            next(words, None)
        made += [name, changes[name]]
    # alone, a machine would be taken for the one that the command is given on
    return [*made, *(["--force_multi"] if len(used) == 1 else []), *command[at:]]
