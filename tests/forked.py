"""Starts real processes that have their imports behind them: forks of one that did them once.

Importing torch, transformers and DeepSpeed takes five seconds of a core, most tests of whole
processes less. It is for tests that judge what a process does, not how a program begins; and forks
share the order of their sets. What users start and what launchers start is started for real too.

    python -m tests.forked          the process that is forked; see `_serve`
"""

import atexit
import ctypes
import gc
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
IMPORTS = ("train", "deepspeed", "tests.retnet.training.workers")


class Forked:
    """A process and what it wrote, with the names of `subprocess.Popen`."""

    def __init__(self, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = out.open(), err.open()
        "Text files; what is in them grows until the process has ended."

    def poll(self) -> int | None:
        """Its exit code, minus the signal that killed it, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code; TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """All that it wrote to stdout and stderr, once it has ended."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: signal.Signals) -> None:
        """To a process that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, where it still runs."""
        self.send_signal(signal.SIGKILL)


def start(
    *command: str,
    folder: Path,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    merged: bool = False,
) -> Forked:
    """What `python COMMAND` starts: a script, "-m" and a module, or "-c" and code, then arguments.

    What it writes is kept in `folder`, stderr in stdout's file where `merged`. It leads a process
    group of its own; its environment is `env` alone, this process's where None.
    """
    number = next(_numbers)
    out, err = (folder / f"process-{number}.{name}" for name in ("out", "err"))
    for file in (out, err):
        file.touch()
    job: dict[str, Any] = {"command": command, "cwd": str(cwd), "env": env or dict(os.environ)}
    pid = _ask(job | {"out": str(out), "err": str(out if merged else err)})
    return Forked(pid, out, out if merged else err)


def run(*command: str, timeout: float, **how: Any) -> subprocess.CompletedProcess:
    """`start`, to the end; killed after `timeout` seconds."""
    process = start(*command, **how)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


_numbers = itertools.count()


@cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked, at the first need of this one and until this one ends."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        # one thread until a process sets more; GPUs counted without a context, which no fork has
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # the end of its input is its end
    return server


def _ask(question: dict[str, Any]) -> Any:
    server = _server()
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve(questions: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Answers line by line, until the last question: {"poll": pid} with an exit code or null, a job
    with the pid of a new process. In that process it returns the job, in this one None."""
    for line in iter(questions.readline, ""):
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            return question
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _become(job: dict[str, Any]) -> None:
    """Runs the job's command as `python` would."""
    os.setsid()
    # A run of tests that is killed ends no fixture, and some forks train for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    created = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, path in enumerate((os.devnull, job["out"], job["err"])):
        opened = os.open(path, created if descriptor else os.O_RDONLY, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, closefd=False)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    first, *rest = job["command"]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = [*rest]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Imports, and answers; in a fork: the command, and its exit."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed by imports is no answer
    for name in IMPORTS:
        __import__(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads after the imports: a fork would have one of them"
    gc.freeze()  # shared by all forks, as long as no collection writes to it
    job = _serve(sys.stdin, own)
    if job is not None:
        own.close()
        _become(job)


if __name__ == "__main__":
    main()
