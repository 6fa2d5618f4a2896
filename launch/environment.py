"""The environment that every node needs, tokens included: a file of the user's own on each node.

DeepSpeed hands variables on in the command line of ssh, where everybody on the machine can read
them, and in its log. Tokens go another way: each node reads `~/.config/retnet/environment`
(NAME=value a line) when a run starts, and this command writes it there over ssh's standard input:

    python -m launch.environment WANDB_API_KEY HF_TOKEN                     on this machine
    python -m launch.environment --hostfile hosts WANDB_API_KEY HF_TOKEN    on every machine of it

The values are taken from the environment of this command and never printed.
"""

import argparse
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from launch.hosts import ANSWER, parse_hostfile, ssh_command

FILE = Path(".config/retnet/environment")
"Below the home folder."
# What ssh runs on a node; whole or not at all, and never readable by others, not even for a moment.
WRITE = (
    f'umask 077 && cd && mkdir -p {FILE.parent} && cat > {FILE}.new && mv {FILE}.new "$HOME"/{FILE}'
)


def read_environment(file: Path | None = None) -> None:
    """Sets the variables of the file (this user's, by default) that are not set yet. No file: none.

    Raises ValueError where others may read or write it, or where a line is no NAME=value; what is
    in the file is not quoted.
    """
    file = file or Path.home() / FILE
    try:
        with file.open() as opened:
            status = os.fstat(opened.fileno())
            lines = opened.read().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 or status.st_uid != os.getuid():
        raise ValueError(
            f"{file} holds secrets and has mode {mode:04o}, owner {status.st_uid}: it must be "
            f"this user's alone; say: chmod 600 {file}"
        )
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not _is_name(name):
            raise ValueError(f"{file}: line {number} is not of the form NAME=value")
        os.environ.setdefault(name, value)


def content(names: list[str]) -> str:
    """The file's text for the named variables of this process's environment.

    ValueError where one is not set, or cannot be a line.
    """
    lines = []
    for name in names:
        if not _is_name(name):
            raise ValueError(f"{name.partition('=')[0]!r} is not the name of a variable")
        value = os.environ.get(name)
        if value is None:
            raise ValueError(f"{name} is not set in this environment")
        if "\n" in value:
            raise ValueError(f"{name} has more than one line, which the file cannot hold")
        lines.append(f"{name}={value}\n")
    return "".join(lines)


def _is_name(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word) is not None


def hand_out(text: str, hosts: list[str], ssh_port: int | None) -> list[str]:
    """Writes the text as every host's file, this machine's where there are no hosts; the hosts
    that did not take it, each with the reason."""
    commands = {host: ssh_command(host, ssh_port, WRITE) for host in hosts}
    problems = []
    for host, command in (commands or {"this machine": ["/bin/sh", "-c", WRITE]}).items():
        try:
            done = subprocess.run(
                command, input=text, text=True, capture_output=True, timeout=ANSWER
            )
        except subprocess.TimeoutExpired:
            problems.append(f"{host}: no answer within {ANSWER} seconds")
            continue
        if done.returncode:
            problems.append(f"{host}: {done.stderr.strip() or f'code {done.returncode}'}")
    return problems


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m launch.environment", description=__doc__)
    parser.add_argument("--hostfile", type=Path, help="as DeepSpeed's; without it this machine")
    parser.add_argument("--ssh_port", type=int)
    parser.add_argument("names", nargs="+", metavar="NAME")
    given = parser.parse_args(arguments)
    try:
        hosts = [host.name for host in parse_hostfile(given.hostfile)] if given.hostfile else []
        problems = hand_out(content(given.names), hosts, given.ssh_port)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if not problems:
        where = ", ".join(hosts) or "this machine"
        sys.stderr.write(f"{', '.join(given.names)} written to ~/{FILE} on {where}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
