"""Several hosts for real: DeepSpeed over ssh, a cable pulled, a host killed, and the supervisor;
one run folder, and tokens that reach the hosts and nobody else."""

import json
import secrets
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.environment import FILE
from tests.conftest import ROOT, TRAIN, Runs
from tests.faults.network import HEAD, Network, refused
from tests.faults.onlooker import Onlooker
from tests.faults.train_token import TOKEN, digest

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
TOKEN_TRAIN = str(Path(__file__).with_name("train_token.py"))


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

    def start(
        self, name: str, supervised: bool, script: str = TRAIN, **settings: object
    ) -> subprocess.Popen:
        """`deepspeed --hostfile` on the head."""
        arguments = self.runs.defaults | SETTINGS | settings | {"name": name}
        command = ["deepspeed", "--quiet", "--hostfile", str(self.network.hostfile(1))]
        command += ["--master_addr", self.network.addresses[0], script]
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
        deadline = time.monotonic() + 240
        while not file.exists() or len(file.read_text().splitlines()) < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, f"step {step} was not reached in time"
            time.sleep(0.02)

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and loss of every line."""
        return [(line["step"], line["loss"]) for line in self.runs.metrics(name) if "loss" in line]

    def is_undisturbed(self, name: str) -> bool:
        """Whether a run's curve is that of a run on one process that nothing happened to."""
        alone = "one-process"
        if not (self.runs.folder / "runs" / alone / "export").exists():
            settings = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
            self.runs.finished(**settings, name=alone)
        return same_curve(self.curve(name), self.curve(alone))


def same_curve(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    """The same steps, each once, with losses within 1e-5 of their size: sums in another order."""
    return [step for step, _ in one] == [step for step, _ in other] and all(
        abs(a - b) <= 1e-5 * abs(b) for (_, a), (_, b) in zip(one, other, strict=True)
    )


def strange(runs: Runs, name: str, others: set[str]) -> str:
    """What is in `runs/`, beside `others`, that one run on two hosts, which rank 0 alone writes and
    names, would not have left; "" where nothing is."""
    made = {path.name for path in (runs.folder / "runs").iterdir()} - others
    events = [event["event"] for event in runs.events(name)]
    folder = runs.folder / "runs" / name
    saves = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    manifests = [
        json.loads((folder / "checkpoints" / save / "manifest.json").read_text()) for save in saves
    ]
    whole = all(
        manifest["layout"]["world_size"] == 2
        and set(manifest["files"]) == {f"rank-{rank:05}.safetensors" for rank in range(2)}
        for manifest in manifests
    )
    logs = {path.name for path in (folder / "logs").iterdir()}
    fine = made == {name} and events.count("started") == events.count("finished") == 1
    fine = fine and saves == ["step-00000010", "step-00000012"] and whole
    return (
        "" if fine and {"rank-0.log", "rank-1.log"} <= logs else f"{made} {saves} {events} {logs}"
    )


@pytest.mark.parametrize("network", [2], indirect=True)
def test_two_hosts_train_as_one_process_does(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    """And write one folder, as one process does."""
    cluster, name = Cluster(network, runs), "two-hosts"
    (runs.folder / "runs").mkdir(exist_ok=True)
    others = {path.name for path in (runs.folder / "runs").iterdir()}
    process = cluster.start(name, supervised=False)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    record("one run folder, 2 hosts", not (wrong := strange(runs, name, others)), wrong)
    record("two hosts over ssh", cluster.is_undisturbed(name), f"{cluster.curve(name)}\n{said}")


@pytest.mark.parametrize("network", [2, 3], indirect=True)
@pytest.mark.parametrize("fault", ["a host is killed", "a link goes down"])
def test_a_run_goes_on_with_the_hosts_that_are_left(
    network: Network, runs: Runs, record: Callable[..., None], fault: str
) -> None:
    """Under the supervisor; the last host is lost in mid-run. Every step is in the metrics once,
    and the curve is that of the run that nothing happened to."""
    lose(network, runs, record, fault, -1)


@pytest.mark.parametrize("network", [2], indirect=True)
def test_a_run_goes_on_without_the_host_of_rank_0(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    """Which wrote the run folder, held its lock, and was where all ranks met."""
    lose(network, runs, record, "a host is killed", 0)


def lose(network: Network, runs: Runs, record: Callable[..., None], fault: str, which: int) -> None:
    """Loses one host of a supervised run in the middle, and judges what becomes of it."""
    cluster, count = Cluster(network, runs), len(network.addresses)
    name = f"{fault.split()[1]}-{which % count}-of-{count}"
    process = cluster.start(name, supervised=True)
    cluster.wait_for_step(name, 5, process)
    lost = network.addresses[which]
    if fault == "a host is killed":
        network.kill_host(lost)
    else:
        network.set_link(lost, "down")
    lost_at = time.monotonic()
    said, _ = process.communicate(timeout=400)
    resumed = [event["step"] for event in runs.events(name) if event["event"] == "resumed"]
    fine = process.returncode == 0 and bool(resumed) and f"goes on without {lost}" in said
    fine = fine and cluster.is_undisturbed(name)
    whose = "" if which else ", rank 0's"
    record(f"{fault}, {count} hosts{whose}", fine, f"{said}\n{runs.events(name)}")
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


def hand_out(network: Network, token: str) -> tuple[int, str]:
    """The command that writes the token onto every host: its exit code, and what it said."""
    command = [sys.executable, "-m", "launch.environment", "--hostfile"]
    command += [str(network.hostfile(1)), TOKEN]
    process = network.start(*command, cwd=ROOT, **{TOKEN: token})
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("network", [2], indirect=True)
def test_a_token_reaches_every_host_and_nobody_else(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    """Handed out over ssh, read by the ranks of a run; then every file and every command line is
    looked through, but for the two files that are there to hold it."""
    cluster, name, token = Cluster(network, runs), "token", secrets.token_hex(20)
    with Onlooker(token) as trial:  # that it sees what there is to see
        sleeping = [sys.executable, "-c", "import time; time.sleep(1)", token]
        subprocess.run(sleeping, check=True)
    assert trial.seen
    other = network.addresses[-1]
    with Onlooker(token) as onlooker:
        network.set_link(other, "down")
        code, complaint = hand_out(network, token)
        assert code == 1 and complaint.startswith(f"{other}: "), complaint
        network.set_link(other, "up")
        code, said = hand_out(network, token)
        assert code == 0, said
        process = cluster.start(name, supervised=False, script=TOKEN_TRAIN)
        told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told
    private = [network.home(address) / FILE for address in network.addresses]
    for file in private:
        assert file.read_text() == f"{TOKEN}={token}\n"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    read = [(runs.folder / f"token-{rank}.txt").read_text() == digest(token) for rank in range(2)]
    record("a token for 2 hosts", all(read) and cluster.is_undisturbed(name), f"{read}\n{told}")
    files = [file for folder in (runs.folder, network.folder) for file in folder.rglob("*")]
    files = [file for file in files if file.is_file() and file not in private]
    assert any(file.name == "rank-1.log" for file in files)
    telling = [str(file) for file in files if token.encode() in file.read_bytes()]
    telling += ["what was said"] * (token in complaint + said + told)
    record("a token in a file or a log, 2 hosts", not telling, str(telling))
    record("a token in a command line, 2 hosts", not onlooker.seen, str(onlooker.seen))


@pytest.mark.parametrize("network", [2], indirect=True)
def test_a_host_that_does_not_share_the_run_folder_is_refused(
    network: Network, runs: Runs, record: Callable[..., None]
) -> None:
    """With one sentence, as a mistake: the supervisor does not try again."""
    cluster, name, other = Cluster(network, runs), "apart", network.addresses[-1]
    (runs.folder / "runs").mkdir(exist_ok=True)
    network.kill_host(other)
    network.start_host(other, apart=runs.folder / "runs")
    process = cluster.start(name, supervised=True)
    said, _ = process.communicate(timeout=240)
    events = runs.events(name)
    fine = process.returncode == 2 and "restart" not in said
    fine = fine and "runs/ must be one shared folder on all machines" in said
    fine = fine and [event["event"] for event in events] == ["failed"]
    kept = list((runs.folder / "runs" / name).glob("checkpoints/*"))
    record("runs/ is another folder, 2 hosts", fine and not kept, f"{events} {kept}\n{said}")
