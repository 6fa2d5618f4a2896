"""A point that runs on this machine: its devices, its command, and the processes that belong to it.

Nothing here asks a device: the process that leads a sweep has no CUDA context of its own.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from launch.supervise import LEFT_OVER, members
from launch.sweep.config import SweepConfig
from launch.sweep.points import Point

MANY = 1000
"Jobs at once, where nobody says how many."
LOG = "launcher.log"
"In a point's folder: what its launcher and libraries print, session after session."


class Process(Protocol):
    """What was started: subprocess.Popen, for one. It leads a session of its own."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""


class Session:
    """A process and all that it started."""

    def __init__(self, process: Process) -> None:
        self._process, self._deadline = process, float("inf")

    def poll(self) -> int | None:
        """Its exit code once all of the session has ended; what outlives it long is killed."""
        code = self._process.poll()
        if code is not None and not members(self._process.pid):
            return code
        if code is not None:
            self._deadline = min(self._deadline, time.monotonic() + LEFT_OVER)
        if time.monotonic() > self._deadline:
            self.kill()
        return None

    def end(self) -> None:
        """Asks all of it to save and to leave, once; who does not, is killed after a while."""
        # not twice: a second request would cut a save short
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + LEFT_OVER
            try:
                os.killpg(self._process.pid, signal.SIGTERM)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """At once."""
        for process in members(self._process.pid):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def leave(self) -> None:
        """The sweep ends: nothing of it is left behind on this machine."""
        self.end()


def devices() -> list[int]:
    """The numbers of the GPUs that this command may use; [] on a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if not all(name.isdigit() for name in names):
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES={visible}: a sweep shares GPUs out by their numbers, as 0,1"
            )
        return [int(name) for name in names]
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(range(sum(line.startswith("GPU ") for line in said.stdout.splitlines())))


def places(options: SweepConfig, gpus: list[int], elsewhere: bool) -> list[list[int]]:
    """The devices of each of the points that may run at once: lists of GPUs, empty on a CPU and
    where points run elsewhere, all of them at once then.

    ValueError where one point needs more GPUs than there are.
    """
    if elsewhere:
        return [[] for _ in range(options.at_once or MANY)]
    if not gpus:
        return [[] for _ in range(options.at_once or 1)]
    each = options.processes
    if each > len(gpus):
        raise ValueError(
            f"hydra.launcher.processes={each}: this machine has {len(gpus)} GPUs for a point"
        )
    shares = [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)]
    return shares[: options.at_once or None]


def launch_command(point: Point, gpus: list[int], processes: int, script: Path) -> list[str]:
    """The command of a point, with a free port for its ranks to meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--num_gpus", str(processes)]
    if gpus:
        where = ["--include", f"localhost:{','.join(map(str, gpus))}"]
    launcher = Path(sys.executable).with_name("deepspeed")
    head = [str(launcher)] if launcher.exists() else ["deepspeed"]
    return [*head, "--quiet", *where, "--master_port", str(port), str(script), *point.overrides]


def start_session(point: Point, command: list[str]) -> Session:
    """Starts a point's command in a session of its own, its words in its folder's launcher.log."""
    point.folder.mkdir(parents=True, exist_ok=True)
    with (point.folder / LOG).open("a") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("HYDRA_")},
        )
    return Session(process)
