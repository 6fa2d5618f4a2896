"""What whole-run tests share: a small corpus and a way to start real runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")
# A model and steps that take seconds on two cores, in float32 so that runs can be equal bit by bit.
SMALL = {
    "steps": 10,
    "sequence_length": 64,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "log_every": 1,
    "evaluate_every": 0,
    "save_every": 4,
    "model.vocab_size": 512,
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.num_heads": 2,
    "model.value_dim": 96,
    "model.intermediate_size": 96,
    "model.chunk_size": 32,
    "tokenizer.vocab_size": 512,
    "tokenizer.train_bytes": 300_000,
    "data": "files",
    "data.streams": 4,
    "data.validation_fraction": 0.1,
    "data.validation_bytes": 60_000,
    "optimizer.learning_rate": 3e-3,
    "schedule.warmup_steps": 2,
    "engine.dtype": "float32",
    "engine.compile": "off",  # the runs that wait for a signal are long ones by their steps
    "logging.wandb": "off",
    "logging.sample_tokens": 20,
    "evaluation": "off",
}


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start is to hear it
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: a core each, as for what they start
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not beside the fault tests: pytest asks only the outermost files for options."""
    parser.addoption("--seed", type=int, default=0, help="decides the moments of the fault tests")


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, before anything can go wrong."""
    return f"moments of the fault tests: --seed {config.getoption('--seed')}"


@dataclass
class Runs:
    """Starts train.py in a folder of its own: under a launcher as a user would, one process alone
    with its imports behind it."""

    folder: Path
    defaults: dict = field(default_factory=dict)
    script: str = TRAIN
    """train.py, or what runs it and watches."""

    def command(self, processes: int = 0, **overrides) -> list[str]:
        """processes 0: plain python; else that many under the DeepSpeed launcher."""
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        arguments = [f"{key}={value}" for key, value in (self.defaults | given).items()]
        if processes == 0:
            return [sys.executable, self.script, *arguments]
        deepspeed = str(Path(sys.executable).with_name("deepspeed"))
        port = str(20_000 + os.getpid() % 20_000)
        launcher = [deepspeed, "--quiet", "--num_gpus", str(processes), "--master_port", port]
        return [*launcher, self.script, *arguments]

    def run(
        self, processes: int = 0, launched: bool = True, **overrides
    ) -> subprocess.CompletedProcess:
        """Runs to the end; stdout and stderr as text. Without `launched`, what a launcher would
        start is started here, stdout is rank 0's and stderr everybody's."""
        command = self.command(processes, **overrides)
        if processes == 0:
            return forked.run(*command[1:], timeout=300, **self._where)
        if not launched:
            with self.ranks(processes, **overrides) as ranks:
                said = [rank.communicate(timeout=300) for rank in ranks]
            code = next((rank.returncode for rank in ranks if rank.returncode), 0)
            errors = "".join(error for _, error in said)
            return subprocess.CompletedProcess(command, code, said[0][0], errors)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=300)

    @contextmanager
    def ranks(self, world_size: int, **overrides) -> Iterator[list[forked.Forked]]:
        """The processes that a launcher would start; those that are left at the end are killed."""
        _, *command = self.command(**overrides)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = []
        try:
            for rank in range(world_size):
                who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
                who |= {"LOCAL_WORLD_SIZE": world_size}
                who |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                env = os.environ | {key: str(value) for key, value in who.items()}
                ranks.append(forked.start(*command, env=env, **self._where))
            yield ranks
        finally:
            for rank in ranks:
                rank.kill()

    @contextmanager
    def at(
        self, when: Callable[[Path], bool], world_size: int, **overrides
    ) -> Iterator[list[forked.Forked]]:
        """As `ranks`, from the time on when `when(run folder)` holds."""
        folder = self.folder / "runs" / overrides["name"]
        with self.ranks(world_size, **overrides) as ranks:
            deadline = time.monotonic() + 120
            while not when(folder):
                for rank in ranks:
                    assert rank.poll() is None, rank.stdout.read() + rank.stderr.read()
                assert time.monotonic() < deadline, "it never came to that"
                time.sleep(0.002)
            yield ranks

    @property
    def _where(self) -> dict[str, Path]:
        (output := self.folder / "output").mkdir(exist_ok=True)
        return {"folder": output, "cwd": self.folder}

    def finished(self, processes: int = 0, launched: bool = True, **overrides) -> str:
        """The stdout of a run that must end well."""
        done = self.run(processes, launched, **overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def interrupted(
        self,
        when: Callable[[Path], bool],
        how: signal.Signals,
        processes: int = 0,
        whole_group: bool = True,
        **overrides,
    ) -> subprocess.Popen | forked.Forked:
        """Starts a run and sends it a signal once `when(run folder)` holds: to its whole process
        group, or only to the process that was started."""
        command = self.command(processes, **overrides)
        if processes == 0:
            process = forked.start(*command[1:], merged=True, **self._where)
        else:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        run_folder = self.folder / "runs" / overrides["name"]
        deadline = time.monotonic() + 120
        try:
            while not when(run_folder):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            (os.killpg if whole_group else os.kill)(process.pid, how)
            process.wait(timeout=60)
        except BaseException:  # a run that did not obey would go on for ever, and so its ranks
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return process

    def metrics(self, name: str) -> list[dict]:
        """The lines of metrics.jsonl without those figures that depend on clock and machine."""
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        clock = (
            "tokens_per_second",
            "mfu",
            "data_wait",
            "peak_memory",
            "step_time/",
            "evaluation/",
        )
        return [
            {key: value for key, value in entry.items() if not key.startswith(clock)}
            for entry in entries
        ]

    def losses(self, name: str) -> list[float]:
        return [entry["loss"] for entry in self.metrics(name) if "loss" in entry]

    def events(self, name: str) -> list[dict]:
        """The lines of events.jsonl without those that depend on how busy the machine is."""
        lines = (self.folder / "runs" / name / "events.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] != "straggler"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on a part of the standard library, with one tokenizer trained for all of them."""
    folder = tmp_path_factory.mktemp("runs")
    stdlib = sysconfig.get_paths()["stdlib"]
    return Runs(folder, SMALL | {"data.files": f"'{stdlib}/[a-d]*.py'"})
