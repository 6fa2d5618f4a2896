"""A run that went on without wandb is brought there from its files."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retnet.training.metrics import Metrics
from retnet.training.sinks import LoggingConfig, WandbMode
from retnet.training.sync import sync
from tests import forked
from tests.retnet.training.wandb_file import history, records


def _run(folder: Path) -> Path:
    off = LoggingConfig(wandb=WandbMode.off)
    how = {"total_steps": 9, "run_name": "run7", "resolved_config": {}, "rank": 0}
    with Metrics(folder, off, console=io.StringIO(), **how) as metrics:
        metrics.resume_at(0)
        for step in range(1, 6):
            metrics.log(step, {"loss": 1.0 / step, "grad_norm": float("nan")})
        metrics.detail(3, "positions", length=4, bucket=2, joined=False, loss=[2.0, 1.0])
    (folder / "config.yaml").write_text("name: run7\nseed: 5\nlogging:\n  wandb_project: mine\n")
    return folder


def test_a_spell_without_wandb_is_made_up_for_from_the_files(tmp_path: Path) -> None:
    words = sync(_run(tmp_path), offline=True)
    assert words.startswith("wrote 6 lines, up to step 5; `wandb sync ")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    lines = history(file)
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5]
    assert lines[0] == {"step": 1, "loss": 1.0}
    assert lines[3]["position/4._type"] == "table-file"
    (start,) = [record.run for record in records(file) if record.HasField("run")]
    assert (start.project, start.display_name) == ("mine", "run7")
    assert start.run_id == (tmp_path / "wandb_id").read_text()
    assert not (tmp_path / "wandb_sent").exists()  # the server has seen none of it


def test_a_fresh_copy_has_another_id_and_all_lines(tmp_path: Path) -> None:
    (_run(tmp_path) / "wandb_id").write_text("old")
    (tmp_path / "wandb_sent").write_text("4\n")
    assert sync(tmp_path, fresh=True, offline=True).startswith("wrote 6 lines")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stem == f"run-{(tmp_path / 'wandb_id').read_text()}" != "run-old"
    assert not (tmp_path / "wandb_sent").exists()


def test_the_command_refuses_with_a_sentence(tmp_path: Path) -> None:
    command = ["-m", "retnet.training.sync", str(tmp_path)]
    done = forked.run(*command, folder=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("needed its config.yaml and metrics.jsonl.")


def test_without_a_key_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (_run(tmp_path) / "wandb_id").write_text("old")
    with pytest.raises(ValueError, match="no key on this machine: run `wandb login`, or .*offline"):
        sync(tmp_path, fresh=True)
    assert (tmp_path / "wandb_id").read_text() == "old"


def test_what_a_full_disk_left_is_told_in_a_sentence(tmp_path: Path) -> None:
    pid = _run(tmp_path) / "logs" / "rank-0.pid"
    pid.parent.mkdir()
    pid.touch()
    for words in ("", "name: [run7\n"):
        (tmp_path / "config.yaml").write_text(words)
        with pytest.raises(ValueError, match="config.yaml is no YAML"):
            sync(tmp_path, offline=True)


def test_a_run_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    pid = _run(tmp_path) / "logs" / "rank-0.pid"
    pid.parent.mkdir()
    script = "import time; print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, "train.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()  # before that, it is still this process's copy
        pid.write_text(f"{process.pid}\n")
        with pytest.raises(ValueError, match=f"still runs .process {process.pid}.*by itself"):
            sync(tmp_path, offline=True)
        pid.write_text(f"{os.getpid()}\n")  # another's number now: the run was killed
        assert sync(tmp_path, offline=True).startswith("wrote 6 lines")
    finally:
        process.kill()
        process.wait()
