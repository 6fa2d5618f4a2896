"""Keeps a run going: starts its command again after a fault, on the machines that are left.

    python -m launch.supervise -- deepspeed --hostfile hosts train.py name=run7

What ends it: the run is finished or was stopped (0), the command is wrong (2), the model diverged
(3), or it failed too often without a new checkpoint between. Not here: how a run resumes, which the
same command does by itself.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.ending import FINAL, Ending, events_written, how_it_ended
from launch.hosts import Host, answering, on_hosts, option, parse_hostfile
from launch.lock import is_held

# SIGUSR1 is what schedulers send before their limit. It is handed on as SIGTERM, too: DeepSpeed's
# own processes die of SIGUSR1.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
LONGEST_WAIT = 300.0
# Seconds that processes which outlived their command have to end by themselves: DeepSpeed's own
# launcher leaves its processes 30 to save.
LEFT_OVER = 40.0
# A connection that says nothing for a minute is closed.
SSH_ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=4"
# Seconds that a run on another machine has to leave the folder.
FOLDER_FREE = 120.0


@dataclass
class Options:
    """What the command line says."""

    command: list[str]
    "The run's own command."
    folder: Path
    "Its run folder."
    restarts: int = 10
    "Restarts in a row without a new checkpoint; then it gives up."
    wait: float = 5.0
    "Seconds before the first restart; each further one in a row waits twice as long, at most 300."
    min_hosts: int = 1
    "Fewer answering machines than that are no start."


def say(sentence: str) -> None:
    """A line to whoever started the supervisor; not into the run folder, which is the run's."""
    sys.stderr.write(f"supervise: {sentence}\n")
    sys.stderr.flush()


class Supervisor:
    """Starts, waits, judges, starts again."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.asked: signal.Signals | None = None
        "The signal that asked it to stop."
        self._session: int | None = None  # the command's, while it runs
        self._fewer = 0  # machines left idle, because a run on all that answer was refused
        self._answered: list[Host] = []

    def run(self) -> int:
        """Until there is nothing to start again; the exit code."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: SIGHUP stays ignored
                signal.signal(number, self._receive)
        failures = 0
        while True:
            newest = newest_checkpoint(self.options.folder)
            code, why, again = self._try()
            if self.asked or (code in FINAL and not again):
                say(f"ends with code {code}: {why}")
                return code
            if again:
                say(why)
                continue
            # a run that gets on is a run that works: only failures in a row count
            failures = 1 if newest_checkpoint(self.options.folder) > newest else failures + 1
            if failures > self.options.restarts:
                say(f"gives up after {failures} failures without a new checkpoint: {why}")
                return code
            pause = min(self.options.wait * 2 ** (failures - 1), LONGEST_WAIT)
            pause *= random.uniform(0.75, 1.25)  # not all of a cluster's runs at once
            say(f"{why}; restart {failures} of {self.options.restarts} in {pause:.0f} s")
            self._pause(pause)
            if self.asked:
                say(f"ends with code 0: {self.asked.name} came before the restart")
                return 0

    def _try(self) -> tuple[int, str, bool]:
        """One start, to its end: the exit code, why, and whether to try at once with fewer
        machines."""
        try:
            command, left_out = self._command()
        except RuntimeError as error:
            return 1, str(error), False
        deadline = time.monotonic() + FOLDER_FREE
        while is_held(self.options.folder) and time.monotonic() < deadline and not self.asked:
            time.sleep(0.5)
        if self.asked:
            return 0, f"{self.asked.name} came before the run had begun", False
        if is_held(self.options.folder):
            return 1, f"{self.options.folder} is still in use by a run on another machine", False
        since = events_written(self.options.folder)
        try:
            returned = self._start(command)
        except OSError as error:  # it was there: a shared disk may be gone for a while
            return 1, f"{command[0]} cannot be started ({error.strerror})", False
        ending = how_it_ended(self.options.folder, since) or ending_of(returned)
        if ending.unwanted and not self.asked:
            return 1, ending.why, False
        if (
            ending.code == 2
            and left_out
            and len(self._answered) - self._fewer > max(self.options.min_hosts, 1)
        ):
            self._fewer += 1
            return 2, f"{ending.why}; tries one machine fewer", True
        return ending.code, ending.why, False

    def _command(self) -> tuple[list[str], bool]:
        """The command on the machines that answer now, and whether that is not all.

        RuntimeError where there are too few.
        """
        command = self.options.command
        file = option(command, "--hostfile", "-H")
        if file is None:
            return command, False
        hosts = parse_hostfile(Path(file))
        port = option(command, "--ssh_port")
        alive = answering(hosts, int(port) if port else None)
        if alive != self._answered:
            self._answered, self._fewer = alive, 0
        used = alive[: len(alive) - self._fewer]
        if len(used) < max(self.options.min_hosts, 1):
            raise RuntimeError(
                f"{len(used)} of {len(hosts)} machines of {file} answer over ssh, and "
                f"{max(self.options.min_hosts, 1)} are needed (--min-hosts)"
            )
        if len(used) < len(hosts):
            names = {host.name for host in hosts} - {host.name for host in used}
            say(f"goes on without {', '.join(sorted(names))}")
        return on_hosts(command, hosts, used), len(used) < len(hosts)

    def _start(self, command: list[str]) -> int:
        """Runs a command to its end, and to the end of what it started; its exit code."""
        # over ssh, a machine that is gone would else be waited for, for ever
        ssh = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {SSH_ALIVE}".strip()
        environment = os.environ | {"PDSH_SSH_ARGS_APPEND": ssh}
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        self._session = process.pid
        if self.asked:  # in the moment before
            self._hand_on()
        while process.poll() is None:
            time.sleep(0.1)
        end_session(process.pid, LEFT_OVER)
        self._session = None
        if self.asked:  # what runs on other machines is still saving
            deadline = time.monotonic() + LEFT_OVER
            while is_held(self.options.folder) and time.monotonic() < deadline:
                time.sleep(0.2)
        return process.returncode

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:  # once: a second one would cut a save short
            self.asked = signal.Signals(number)
            self._hand_on()

    def _hand_on(self) -> None:
        if self._session is not None:
            try:
                os.killpg(self._session, signal.SIGTERM)
            except ProcessLookupError:
                return

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.asked:
            time.sleep(0.1)


def ending_of(code: int) -> Ending:
    """What an exit code alone says: negative where a signal killed the process."""
    if code < 0:
        return Ending(128 - code, f"it was killed by {signal.Signals(-code).name}")
    return Ending(code, "it ended well" if code == 0 else f"it ended with code {code}")


def newest_checkpoint(folder: Path) -> str:
    """The name of a run's newest whole checkpoint; "" before the first."""
    manifests = (folder / "checkpoints").glob("step-????????/manifest.json")
    return max((manifest.parent.name for manifest in manifests), default="")


def members(session: int) -> list[int]:
    """The processes of a session, without those that have ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent group session ...": the name may hold spaces and parentheses
            state, _, _, of, *_ = entry.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):  # it has just gone
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def end_session(session: int, patience: float) -> None:
    """Waits until a session is empty; after `patience` seconds kills what is left of it."""
    deadline = time.monotonic() + patience
    while left := members(session):
        if time.monotonic() > deadline:
            say(f"kills {len(left)} processes that outlived their command by {patience:.0f} s")
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.2)


def read_options(arguments: list[str]) -> Options:
    """The command line; ValueError where the run's folder is not to be found out."""
    parser = argparse.ArgumentParser(
        "python -m launch.supervise", usage="%(prog)s [options] -- COMMAND ..."
    )
    parser.add_argument("--restarts", type=int, default=Options.restarts)
    parser.add_argument("--wait", type=float, default=Options.wait, help="seconds")
    parser.add_argument("--min-hosts", type=int, default=Options.min_hosts)
    parser.add_argument("--folder", type=Path, help="runs/NAME, where COMMAND has no name=NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        raise ValueError("no command was given: python -m launch.supervise -- deepspeed train.py")
    if shutil.which(command[0]) is None:
        raise ValueError(f"there is no command {command[0]}, or it may not be executed")
    names = [word.removeprefix("name=") for word in command if word.startswith("name=")]
    if given.folder is None and not names:
        raise ValueError("which run is it? Say name=NAME in the command, or --folder runs/NAME")
    folder = given.folder or Path("runs") / names[-1].strip("'\"")
    return Options(command, folder, given.restarts, given.wait, given.min_hosts)


if __name__ == "__main__":
    try:
        sys.exit(Supervisor(read_options(sys.argv[1:])).run())
    except ValueError as problem:
        say(str(problem))
        sys.exit(2)
