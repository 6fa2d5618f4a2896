"""What can happen to a checkpoint while it is written, and where it lies: full disks, folders that
may only be read, files that are damaged, stores that refuse. Kills are in test_kills.py."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.uploads import open_upload
from retnet.training.checkpoint import newest_good
from retnet.training.housekeeping import checkpoints, step_of
from retnet.training.manifest import read_manifest, verify
from retnet.training.tensor_file import open_tensors
from tests.conftest import Runs
from tests.data.servers import KEYS, s3_server
from tests.data.test_uploads import Refusing
from tests.retnet.training.processes import run, start
from tests.small_disk import fill, small_disk

Record = Callable[..., None]
SAVES = {"steps": 8, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def whole(runs: Runs) -> list[dict[str, Any]]:
    """The lines of a run that nothing happened to."""
    runs.finished(name="whole", **SAVES)
    return runs.metrics("whole")


@contextmanager
def little_room(folder: Path, room: int) -> Iterator[Path]:
    """A run's folder on a disk that has so many bytes left, and the file that takes the others."""
    with small_disk(folder, 16):
        fill(ballast := folder / "in the way")
        with ballast.open("r+b") as stream:
            stream.truncate(ballast.stat().st_size - room)
        yield ballast


def damage(path: Path, draw: random.Random) -> str:
    """Spoils one file of a checkpoint somehow; in words."""
    file = draw.choice(sorted(path.iterdir()))
    how = draw.choice(["truncated", "bit flipped", "missing"])
    if how == "missing":
        file.unlink()
        return f"a file {how}"
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data))
    if how == "truncated":
        data = data[:place]
    else:
        data[place] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    return f"a file {how}"


@pytest.mark.parametrize("times", [12, pytest.param(300, marks=pytest.mark.long)])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, draw: random.Random, record: Record, times: int
) -> None:
    saves = {"two": {"steps": [1, 2, 3]}}
    run("saved", 1, tmp_path, module="workers_saving", runs=saves)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for number in range(times):
            folder = Path(shutil.copytree(tmp_path / "two/checkpoints", tmp_path / str(number)))
            fault = damage(folder / "step-00000003", draw)
            path, passed_over = newest_good(checkpoints(folder))
            good = path == folder / "step-00000002" and "step-00000003" in passed_over[0]
            record(fault, good, f"{path}, {passed_over}")
            shutil.rmtree(folder)
    finally:
        dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.parametrize("on_failure", ["go_on", "stop"])
def test_a_run_survives_a_full_disk(
    runs: Runs, whole: list[dict[str, Any]], record: Record, on_failure: str
) -> None:
    """One checkpoint fits. The run trains on, or stops, as it was told to; with room again the
    same command goes on from the one that fitted, as if nothing had been."""
    name, how = f"full-{on_failure}", SAVES | {"checkpoint.on_failure": on_failure}
    size = sum(file.stat().st_size for file in newest(runs, "whole").iterdir())
    with little_room(runs.folder / "runs" / name, int(1.6 * size)) as ballast:
        done = runs.run(name=name, **how)
        events = [(event["event"], event.get("step")) for event in runs.events(name)]
        failed = [step for kind, step in events if kind == "save_failed"]
        (path,) = checkpoints(runs.folder / "runs" / name / "checkpoints")
        verify(path)
        good = done.returncode == 1 and ("saved", 2) in events and path.name == "step-00000002"
        good &= "No space left on device" in done.stdout + done.stderr
        seen = [line["step"] for line in runs.metrics(name)]
        good &= failed == [4, 6, 8] and seen[-1] == 8 if on_failure == "go_on" else failed == [4]
        record(f"disk full, {on_failure}", good, f"{events} {done.stdout} {done.stderr}")
        fill(ballast)
        again = runs.run(name=name, **how)
        good = again.returncode == 1 and "No space left on device" in again.stderr
        good &= "Traceback" not in again.stderr and "goes on from" in again.stdout
        record("disk full from the start", good, f"{again.stdout} {again.stderr}")
        ballast.unlink()
        runs.finished(name=name, **how)
        record("room again", runs.metrics(name) == whole, "other metrics")


def newest(runs: Runs, name: str) -> Path:
    return checkpoints(runs.folder / "runs" / name / "checkpoints")[0]


@pytest.mark.long
def test_a_folder_that_may_only_be_read_is_refused_before_anything_is_computed(
    runs: Runs, record: Record
) -> None:
    folder = runs.folder / "runs" / "read-only"
    with small_disk(folder, 1):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        done = runs.run(name="read-only", **SAVES)
    good = done.returncode == 2 and "runs/read-only may not be written to" in done.stderr
    record("a folder that may only be read", good, f"{done.returncode} {done.stderr}")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 store on loopback, which the runs can reach."""
    server = s3_server()
    server.faults.reset()
    for key, value in (KEYS | {"AWS_ENDPOINT_URL": server.url}).items():
        monkeypatch.setenv(key, value)
    yield "s3://bucket/runs"
    server.faults.reset()


@pytest.mark.long
def test_a_run_whose_folder_is_lost_goes_on_from_its_copy(
    runs: Runs, whole: list[dict[str, Any]], record: Record, store: str
) -> None:
    how = SAVES | {"name": "copied", "checkpoint.copy_to": store}
    runs.finished(**how)
    shutil.rmtree(runs.folder / "runs/copied")
    place = open_upload(f"{store}/copied", 5.0)
    for name in place.names():
        if name.startswith("step-00000008/"):
            place.remove(name)
    said = runs.finished(**how)
    good = "step-00000006 was brought from s3://bucket/runs/copied" in said
    good &= runs.metrics("copied") == [line for line in whole if line["step"] > 6]
    record("the run's folder is gone, its copy stands", good, said)


@pytest.mark.long
def test_a_store_that_refuses_costs_the_copy_alone(
    runs: Runs, whole: list[dict[str, Any]], record: Record, store: str, monkeypatch
) -> None:
    faults = s3_server().faults
    monkeypatch.setattr(faults, "app", Refusing(faults.app, 10**6))
    how = {"name": "refused", "checkpoint.copy_to": store, "checkpoint.copy_timeout": 1}
    said = runs.finished(**SAVES | how)
    kinds = [event["event"] for event in runs.events("refused")]
    good = "copy_failed" in kinds and "copied" not in kinds and kinds[-1] == "finished"
    good &= runs.metrics("refused") == whole
    record("a store that refuses", good, f"{kinds} {said}")


def assert_whole(folder: Path) -> int:
    """Each checkpoint of a run that was killed verifies and is of its own step in every number;
    returns the newest step, 0 without one."""
    found = checkpoints(folder)
    for path in found:
        verify(path)
        for name in read_manifest(path)["files"]:
            file = open_tensors(path / name)
            for key in file.names():
                if "/ballast@" in key:
                    values = file.read(key).unique().tolist()
                    assert values == [float(step_of(path.name) or -1)], (path, key)
    return step_of(found[0].name) or 0 if found else 0


def kill_once(folder: Path, doomed: list[int], moment: str, delay: float) -> None:
    """Starts two ranks that load and then save without end, and SIGKILLs the doomed ones `delay`
    seconds after the moment (`loading` or `saving`) came; the other soon after, as launchers do."""
    for name in ("loading", "saving"):
        (folder / name).unlink(missing_ok=True)
    processes = start("until_killed", 2, folder, module="workers_saving", last=10**6)
    deadline = time.monotonic() + 60
    while not (folder / moment).exists():
        assert time.monotonic() < deadline, processes[0].stdout.read()
        time.sleep(0.002)
    time.sleep(delay)
    for rank in doomed:
        processes[rank].send_signal(signal.SIGKILL)
    time.sleep(0.1)
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_a_kill_at_any_moment_leaves_whole_checkpoints(
    tmp_path: Path, draw: random.Random, record: Record
) -> None:
    """Of one rank or both, in a save, the next one and a load; then the run goes on. A whole loop
    is killed in test_kills.py."""
    newest, interrupted = 0, 0
    for doomed, moment in (([0, 1], "saving"), ([1], "saving"), ([0], "loading")) * 2:
        kill_once(tmp_path, doomed, moment, draw.uniform(0.0, 0.3))
        interrupted += len(list(tmp_path.glob("checkpoints/*.tmp")))
        before, newest = newest, assert_whole(tmp_path / "checkpoints")
        record("SIGKILL beside saves without end", newest >= before, f"{newest}", moment)
    assert interrupted, "no kill came during a save"
    assert newest > 0
    assert run("until_killed", 2, tmp_path, module="workers_saving", last=newest + 2) == [
        newest,
        newest,
    ]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-{newest + step:08d}" for step in (1, 2))]
