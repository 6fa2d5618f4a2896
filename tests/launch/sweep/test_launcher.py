"""`python train.py -m`: a point is a real launch, and the run that a user would have had alone."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from configs.explain import check_overrides
from launch.sweep.asked import Asked
from launch.sweep.launcher import Processes, is_sweep, run_sweep
from launch.sweep.points import lines_of
from tests import forked
from tests.conftest import ROOT, Runs

TRAIN = str(ROOT / "train.py")


def sweep(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (output := folder / "output").mkdir(exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return forked.run(TRAIN, "-m", *arguments, folder=output, cwd=folder, env=env, timeout=300)


def test_a_point_is_the_run_that_its_command_alone_would_be(runs: Runs) -> None:
    settings = {"steps": 4, "logging__sample_tokens": 0}
    arguments = runs.command(name="one-point", **settings)[2:]
    arguments.remove("optimizer.learning_rate=0.003")
    done = sweep(runs.folder, *arguments, "optimizer.learning_rate=choice(2e-3)")
    assert done.returncode == 0, done.stdout + done.stderr
    name = "one-point/learning_rate-0.002"
    runs.finished(name="alone", **settings, optimizer__learning_rate=2e-3)
    assert runs.metrics(name) == runs.metrics("alone")
    configs = []
    for run in (name, "alone"):
        configs.append(yaml.safe_load((runs.folder / "runs" / run / "config.yaml").read_text()))
        assert configs[-1].pop("name") == run
    assert configs[0] == configs[1]
    table = done.stdout.splitlines()
    assert any(line.split()[:1] == ["0.002"] and "finished" in line for line in table)
    made = {path.name for path in (runs.folder / "runs/one-point").iterdir()}
    assert made == {
        *("lock", "session", "points.jsonl", "table.csv", "sweep.png"),
        "learning_rate-0.002",
    }
    again = sweep(runs.folder, *arguments, "optimizer.learning_rate=choice(2e-3)")
    assert again.returncode == 0 and "learning_rate-0.002: finished before" in again.stdout
    assert len(lines_of(runs.folder / "runs/one-point/points.jsonl")) == 1


REFUSED = {
    "sizes": (["model.num_heads=3,5,7", "name=s"], "num_heads-5 is refused: model.hidden_size="),
    "nothing": (["seed=1"], "-m has nothing to sweep here"),
    "names": (["seed=1,2", "name=a,b"], "a sweep has one name"),
    "odd name": (["seed=1,2", "name=what ever"], "may hold letters, digits and . - _"),
    "a run": (["seed=1,2", "name=run"], "runs/run holds a single run"),
    "devices": (["seed=1,2", "hydra.launcher.processes=0"], "processes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_sweep_is_told_before_anything_starts(case: str, tmp_path: Path) -> None:
    arguments, words = REFUSED[case]
    (tmp_path / "runs/run").mkdir(parents=True)
    (tmp_path / "runs/run/events.jsonl").touch()
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert ("(so are 1 more of 3)" in done.stderr) == (case == "sizes")
    assert not (tmp_path / "runs/s").exists() and not done.stdout


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweep").glob("*.yaml")), ids=str)
def test_a_named_sweep_holds_only_what_its_points_hear_of(file: Path) -> None:
    assert set(yaml.safe_load(file.read_text())) <= {"defaults", "name", "hydra"}
    assert check_overrides(["-m", f"sweep={file.stem}"]) is None


def test_what_a_sweeper_writes_with_every_password_does_not_outlast_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    written = Path("runs/s/multirun.yaml")

    def interrupted() -> None:
        Processes.sweep.asked = Asked("s", {"seed"}, True)
        written.parent.mkdir(parents=True)
        written.write_text("data.files: s3://user:secret@store/a")
        raise KeyboardInterrupt

    assert run_sweep(interrupted, check_overrides) == 0 and not written.exists()


def test_a_sweep_under_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"begin it with python train.py -m"):
        run_sweep(lambda: None, check_overrides)
    assert is_sweep(["seed=1,2", "-m"]) and not is_sweep(["seed=1"])
