"""What a scheduler has to know of a run: one small YAML file, from which the Slurm script and the
Kubernetes manifest are made (launch/slurm.py, launch/kubernetes.py)."""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml


@dataclass
class ClusterConfig:
    """A part of a cluster, for one run."""

    nodes: int
    "Machines."
    processes_per_node: int
    "One for each GPU of a machine."
    shared_path: str
    "The checkout, with its virtual environment and runs/: the same folder on all machines."
    hours: float = 24.0
    "The most that one session may take; the run goes on in another."
    gpus: bool = True
    "Whether each process needs a GPU."
    cpus_per_process: int = 8
    "Cores."
    memory_per_node: str = ""
    "As the scheduler writes it (Slurm 512G, Kubernetes 512Gi); empty: its default."
    restarts: int = 20
    "Times that the scheduler starts the run again."
    interface: str = ""
    "The network interface between the machines; empty: the one that leads to rank 0's."
    port: int = 29500
    "Rank 0 listens there."
    partition: str = ""
    "Slurm's; empty: its default."
    account: str = ""
    "Slurm's; empty: its default."
    image: str = ""
    "Kubernetes': the container with Python's libraries for the GPU."
    namespace: str = "default"
    "Kubernetes'."
    claim: str = ""
    "Kubernetes': the volume claim that is mounted at shared_path."
    secret: str = ""
    "Kubernetes': the secret whose entries become environment variables (WANDB_API_KEY, ...)."
    user: int = 1000
    "Kubernetes': the user id that owns shared_path; never root."

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: needed at least 1")
        if self.hours <= 0.2:
            raise ValueError(f"hours={self.hours}: a run saves 5 minutes before; needed over 0.2")
        if not self.shared_path.startswith("/"):
            raise ValueError(f"shared_path={self.shared_path!r} must begin with /")
        if not 1024 <= self.port < 65536:
            raise ValueError(f"port={self.port}: needed 1024 to 65535")
        if self.user < 1:
            raise ValueError(f"user={self.user}: a run needs no root; name another user id")


def read_cluster(file: Path) -> ClusterConfig:
    """The cluster of a YAML file; ValueError with a sentence for whatever is wrong in it."""
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must have lines of the form key: value")
    known = {field.name: field for field in fields(ClusterConfig)}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise ValueError(f"{file}: there is no key {key!r}" + f"; {near[0]}?" * bool(near))
        values[key] = _typed(file, key, value, known[key].type)
    missing = [key for key, field in known.items() if field.default is MISSING]
    if missing := [key for key in missing if key not in values]:
        raise ValueError(f"{file} does not say {', '.join(missing)}")
    return ClusterConfig(**values)


def _typed(file: Path, key: str, value: Any, wanted: Any) -> Any:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{file}: {key}: {value!r} must be of type {wanted.__name__}")
    # these go into lines of a script and names of a manifest
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@+-]*", value):
        raise ValueError(f"{file}: {key}: {value!r} may hold letters, digits and . / : @ + - _")
    return value


def name_of(arguments: list[str]) -> str:
    """The run's name in the arguments of train.py; ValueError where they have none, or where it is
    nothing that a script can hold unquoted."""
    names = [word.removeprefix("name=") for word in arguments if word.startswith("name=")]
    if not names:
        raise ValueError("which run is it? Say name=NAME among the arguments of train.py")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", names[-1]) or ".." in names[-1].split("/"):
        raise ValueError(f"name={names[-1]} may hold letters, digits and . - _")
    return names[-1]


def generate(module: str, make: Callable[[ClusterConfig, list[str]], str]) -> int:
    """The command line of a generator: `python -m MODULE cluster.yaml -- train.py name=NAME ...`,
    to standard output. The exit code."""
    parser = argparse.ArgumentParser(
        f"python -m {module}", usage="%(prog)s cluster.yaml -- train.py name=NAME ..."
    )
    parser.add_argument("cluster", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    try:
        if not command:
            raise ValueError("what is to run? Say -- train.py name=NAME ... after the cluster")
        sys.stdout.write(make(read_cluster(given.cluster), command))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
