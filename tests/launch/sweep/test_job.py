"""A point as a Slurm job: what is given to sbatch, and what becomes of the sweep around it.

There is no scheduler here: sbatch and squeue are scripts that answer as Slurm's do.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.sweep.points import lines_of
from tests import forked

TRAIN = str(forked.ROOT / "train.py")
CLUSTER = "nodes: 1\nprocesses_per_node: 2\nshared_path: /shared/retnet\n"
# The job runs to its end at once.
SBATCH = """#!/bin/sh
echo "$@" >> "$QUEUE/submitted"
folder=$(dirname "$2")
echo '{"step": 6, "loss": 2.5, "val/a/loss": 3.5}' > "$folder/metrics.jsonl"
echo '{"event": "finished", "step": 6}' > "$folder/events.jsonl"
echo "47$(wc -l < "$QUEUE/submitted");cluster"
"""


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A folder of commands, which note in it what they are asked."""
    for name, text in {"sbatch": SBATCH, "squeue": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "output").mkdir()
    return tmp_path


def sweep(queue: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{queue}:{os.environ['PATH']}", "QUEUE": str(queue)}
    command = [TRAIN, "-m", "hydra.launcher.cluster=cluster.yaml", "steps=6", *arguments]
    return forked.run(*command, folder=queue / "output", cwd=queue, env=env, timeout=120)


def test_each_point_is_a_job_once_and_one_that_is_not_taken_ends_no_other(queue: Path) -> None:
    done = sweep(queue, "optimizer.learning_rate=1e-3,2e-3", "name=jobs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "learning_rate-0.001: finished, validation loss 3.5" in done.stdout
    jobs = [line for line in lines_of(queue / "runs/jobs/points.jsonl") if "job" in line]
    assert [job["job"] for job in jobs] == ["471", "472"]
    assert len((queue / "submitted").read_text().splitlines()) == 2
    script = queue / "runs/jobs/learning_rate-0.001/job.sh"
    words = shlex.split(script.read_text().split(" rank \\\n")[1].splitlines()[0])
    assert words == [
        *(".venv/bin/python", "-u", "train.py", "steps=6"),
        *("optimizer.learning_rate=0.001", "name=jobs/learning_rate-0.001"),
    ]
    checker = str(Path(sys.executable).with_name("shellcheck"))
    checked = subprocess.run([checker, str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    (queue / "sbatch").write_text("#!/bin/sh\necho QOSMaxSubmitJob >&2\nexit 1\n")
    again = sweep(queue, "optimizer.learning_rate=3e-3,2e-3", "name=jobs")
    assert "learning_rate-0.002: finished before" in again.stdout, again.stdout + again.stderr
    refused = "sbatch refused runs/jobs/learning_rate-0.003/job.sh: QOSMaxSubmitJob"
    assert f"learning_rate-0.003: failed: {refused}" in again.stdout
    assert again.returncode == 1 and not again.stderr


def test_a_machine_without_a_scheduler_is_told(queue: Path) -> None:
    (queue / "sbatch").unlink()
    done = sweep(queue, "seed=1,2")
    assert done.returncode == 2 and "there is no sbatch on this machine" in done.stderr
    assert len(done.stderr.splitlines()) == 1
