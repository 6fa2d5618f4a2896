"""Several hosts for real: DeepSpeed over ssh, a cable pulled, a host killed, and the supervisor."""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, Runs
from tests.faults.network import HEAD, Network, refused

pytestmark = pytest.mark.long
# Twelve rows and streams divide over 1, 2 and 3 ranks.
SETTINGS = {
    "steps": 12,
    "global_batch_size": 12,
    "data.streams": 12,
    "micro_batch_size": 2,
    "save_every": 2,
    "model.dropout": 0.0,
    "engine": "zero2",
    "logging.sample_tokens": 0,
    "limits.hang": 20,
    "data.retry_seconds": 5,
}


@pytest.fixture
def network(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    if why := refused():
        pytest.skip(f"no hosts of our own: {why}")
    with Network(tmp_path, request.param) as made:
        yield made


class Cluster:
    """Runs of train.py over the hosts of a network."""

    def __init__(self, network: Network, runs: Runs) -> None:
        self.network, self.runs = network, runs
        # what DeepSpeed hands on to the hosts
        (runs.folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu")

    def start(self, name: str, supervised: bool, **settings: object) -> subprocess.Popen:
        """`deepspeed --hostfile` on the head."""
        arguments = self.runs.defaults | SETTINGS | settings | {"name": name}
        command = ["deepspeed", "--quiet", "--hostfile", str(self.network.hostfile(1))]
        command += ["--master_addr", self.network.addresses[0], str(ROOT / "train.py")]
        # each word goes through a shell once more on its way
        command += [shlex.quote(f"{key}={value}") for key, value in arguments.items()]
        if supervised:
            command = [sys.executable, "-m", "launch.supervise", "--wait", "1", "--", *command]
        return self.network.start(
            *command, cwd=self.runs.folder, PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu"
        )

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        """Until metrics.jsonl has that many steps."""
        file = self.runs.folder / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not file.exists() or len(file.read_text().splitlines()) < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"step {step} was not reached in time"
            time.sleep(0.02)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and loss of every line."""
        return [(line["step"], line["loss"]) for line in self.runs.metrics(name) if "loss" in line]


def same_curve(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    """The same steps, each once, with losses within 1e-5 of their size: sums in another order."""
    return [step for step, _ in one] == [step for step, _ in other] and all(
        abs(a - b) <= 1e-5 * abs(b) for (_, a), (_, b) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("network", [2], indirect=True)
def test_two_hosts_train_as_one_process_does(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    cluster = Cluster(network, runs)
    process = cluster.start("two-hosts", supervised=False)
    said, _ = process.communicate(timeout=240)
    runs.finished(**{key.replace(".", "__"): value for key, value in SETTINGS.items()}, name="one")
    fine = process.returncode == 0 and same_curve(cluster.curve("two-hosts"), cluster.curve("one"))
    record("two hosts over ssh", fine, said)


@pytest.mark.parametrize("network", [2, 3], indirect=True)
@pytest.mark.parametrize("fault", ["a host is killed", "a link goes down"])
def test_a_run_goes_on_with_the_hosts_that_are_left(
    network: Network, runs: Runs, record: Callable[..., None], fault: str
) -> None:
    """Under the supervisor; the last host is lost in mid-run. Every step is in the metrics once,
    and the curve is that of the run that nothing happened to."""
    cluster, count = Cluster(network, runs), len(network.addresses)
    if not (runs.folder / "runs" / "one").exists():
        settings = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
        runs.finished(**settings, name="one")
    name = f"{fault.split()[1]}-{count}"
    process = cluster.start(name, supervised=True)
    cluster.wait_for_step(name, 5, process)
    lost = network.addresses[-1]
    if fault == "a host is killed":
        network.kill_host(lost)
    else:
        network.set_link(lost, "down")
    lost_at = time.monotonic()
    said, _ = process.communicate(timeout=400)
    resumed = [event["step"] for event in runs.events(name) if event["event"] == "resumed"]
    fine = process.returncode == 0 and bool(resumed) and f"goes on without {lost}" in said
    fine = fine and same_curve(cluster.curve(name), cluster.curve("one"))
    record(f"{fault}, {count} hosts", fine, f"{said}\n{runs.events(name)}")
    assert HEAD not in said and time.monotonic() - lost_at < 300


@pytest.mark.parametrize("network", [2], indirect=True)
def test_a_supervised_run_on_two_hosts_stops_when_it_is_asked(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    """SIGTERM to the supervisor: the ranks on both hosts save and end, and nothing is restarted."""
    cluster, name = Cluster(network, runs), "asked"
    process = cluster.start(name, supervised=True, steps=100_000)
    cluster.wait_for_step(name, 3, process)
    (supervisor,) = psutil.Process(process.pid).children()  # below `unshare`
    supervisor.terminate()
    said, _ = process.communicate(timeout=120)
    last = runs.events(name)[-1]
    fine = process.returncode == 0 and last["event"] == "stopped" and "restart" not in said
    kept = runs.folder / "runs" / name / "checkpoints" / f"step-{last.get('step', 0):08}"
    record("SIGTERM to the supervisor, 2 hosts", fine and kept.is_dir(), f"{last}\n{said}")
