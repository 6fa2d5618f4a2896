"""A point that runs as a Slurm job: the script of launch/slurm.py, given to sbatch.

The script asks for the job again by itself until the run has ended; here it is only watched. No
scheduler has run it here.
"""

import subprocess
import time
from pathlib import Path

from launch.cluster import ClusterConfig
from launch.slurm import slurm_script
from launch.sweep.points import Point

SCRIPT = "job.sh"
"In a point's folder."
BETWEEN_QUESTIONS = 30.0
"Seconds; who asks a scheduler more often is not liked."
PATIENCE = 120.0
"Seconds that a busy scheduler has for an answer."


class Job:
    """A submitted job."""

    def __init__(self, number: str) -> None:
        self.number = number
        self._ask_at = 0.0

    def poll(self) -> int | None:
        """0 once it is in the queue no more; how it ended, its run's folder says."""
        if time.monotonic() < self._ask_at:
            return None
        self._ask_at = time.monotonic() + BETWEEN_QUESTIONS
        return None if is_queued(self.number) else 0

    def end(self) -> None:
        """Asks it to save and to end."""
        _slurm("scancel", self.number)

    kill = end

    def leave(self) -> str:
        """Lets it be, and says so."""
        return f"job {self.number} goes on; `scancel {self.number}` ends it"


def is_queued(number: str) -> bool:
    """Whether a job waits or runs; a scheduler that cannot be asked just now leaves it there."""
    said = _slurm("squeue", "-h", "-j", number, "-o", "%T")
    if said.returncode:
        return "invalid job id" not in said.stderr.lower()
    return bool(said.stdout.strip())


def submit(point: Point, cluster: ClusterConfig) -> str:
    """Writes a point's script into its folder and submits it; the job's number.

    RuntimeError where sbatch refuses it.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    file: Path = point.folder / SCRIPT
    file.write_text(slurm_script(cluster, ["train.py", *point.overrides]))
    said = _slurm("sbatch", "--parsable", str(file))
    if said.returncode:
        raise RuntimeError(f"sbatch refused {file}: {said.stderr.strip()}")
    return said.stdout.strip().split(";")[0]  # "number" or "number;cluster"


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError as error:
        raise ValueError(
            f"hydra.launcher.cluster: there is no {command[0]} on this machine; start the sweep "
            "where Slurm takes jobs"
        ) from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {PATIENCE:.0f} seconds")
