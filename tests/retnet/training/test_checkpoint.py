"""A checkpoint exists whole or not at all, and what is loaded is what was saved."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from retnet.training.checkpoint import CheckpointConfig, checkpoints, newest_good, verify
from tests.retnet.training.processes import run, start
from tests.retnet.training.workers import DTYPES, LAYOUTS


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of processes with one member, this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the good checkpoints 2 and 3 of one rank, ZeRO 1."""
    folder = tmp_path_factory.mktemp("two")
    names = run("saved", 1, folder, steps=[1, 2, 3], keep_last=2)[0]
    assert names == ["latest", "step-00000002", "step-00000003"]
    return folder


@pytest.fixture
def damaged(two_saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(two_saved, tmp_path / "run"))


@pytest.fixture(scope="module")
def loads(two_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds when it loads from copies that were damaged in several ways."""
    root = tmp_path_factory.mktemp("loads")
    for name in ("truncated", "flipped", "all bad", "leftovers", "other stage"):
        shutil.copytree(two_saved, root / name)
    _truncate(_shard(root / "truncated", 3))
    _flip_a_bit(_shard(root / "flipped", 3))
    for step in (2, 3):
        _flip_a_bit(_shard(root / "all bad", step))
    left = root / "leftovers" / "checkpoints"
    (left / "step-00000004.tmp").mkdir()
    (left / "step-00000003").rename(left / "step-00000003.old")
    (root / "empty").mkdir()
    runs = {str(path): 2 if path.name == "other stage" else 1 for path in root.iterdir()}
    found = run("loaded", 1, root, runs=runs)[0]
    return {Path(path).name: result for path, result in found.items()} | {"root": root}


def _shard(folder: Path, step: int) -> Path:
    return next((folder / f"checkpoints/step-{step:08d}").rglob("*_optim_states.pt"))


def _truncate(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def _flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_resume_is_exact(tmp_path: Path) -> None:
    ranks = run("resumed", 2, tmp_path)
    assert len(ranks[0]) == len(DTYPES) * len(LAYOUTS)
    for rank in ranks:
        for key, seen in rank.items():
            (straight, weights), (again, weights_again) = seen["straight"], seen["again"]
            assert again == straight, key
            assert seen["loaded"].state == seen["state"], key
            assert seen["loaded"].extra == {"cursors": [1, 2]}, key
            assert seen["loaded"].passed_over == [], key
            assert seen["decays"] == [0.7, 0.0], f"{key}: the saved run's weight decay came back"
            for name, value in (weights or {}).items():
                assert torch.equal(value, weights_again[name]), (key, name)


def test_a_truncated_file_is_refused_by_name_with_both_sizes(damaged: Path) -> None:
    file = _shard(damaged, 3)
    size = file.stat().st_size
    _truncate(file)
    with pytest.raises(RuntimeError, match=f"{file.name} has {size - 1} bytes.* {size} bytes"):
        verify(damaged / "checkpoints/step-00000003")


def test_a_flipped_bit_is_refused_by_name_with_both_checksums(damaged: Path) -> None:
    file = _shard(damaged, 3)
    _flip_a_bit(file)
    with pytest.raises(RuntimeError, match=f"{file.name} has the SHA-256 [0-9a-f]{{64}}; .* says"):
        verify(damaged / "checkpoints/step-00000003")


def test_the_older_checkpoint_is_used_where_the_newest_is_damaged(loads: dict[str, Any]) -> None:
    for name in ("truncated", "flipped"):
        found = loads[name]
        assert found["loaded"].state.step == 2 and found["moved"], name
        (sentence,) = found["loaded"].passed_over
        assert "step-00000003" in sentence and "optim_states.pt" in sentence, name


def test_without_a_manifest_there_is_no_checkpoint(damaged: Path, alone: None) -> None:
    (damaged / "checkpoints/step-00000003/manifest.json").unlink()
    path, passed_over = newest_good(checkpoints(damaged / "checkpoints"))
    assert path is not None and path.name == "step-00000002"
    assert "manifest.json is missing" in passed_over[0]


def test_a_torn_manifest_is_no_manifest(damaged: Path, alone: None) -> None:
    _truncate(damaged / "checkpoints/step-00000003/manifest.json")
    path, passed_over = newest_good(checkpoints(damaged / "checkpoints"))
    assert path is not None and path.name == "step-00000002"
    assert "not valid JSON" in passed_over[0]


def test_a_manifest_whose_numbers_changed_is_refused(damaged: Path, alone: None) -> None:
    file = damaged / "checkpoints/step-00000003/manifest.json"
    text = file.read_text()
    assert '"step": 3' in text
    file.write_text(text.replace('"step": 3', '"step": 7'))
    path, passed_over = newest_good(checkpoints(damaged / "checkpoints"))
    assert path is not None and path.name == "step-00000002"
    assert "manifest.json has the SHA-256" in passed_over[0]


def test_nothing_of_a_bad_checkpoint_is_loaded(loads: dict[str, Any]) -> None:
    found = loads["all bad"]
    assert found["error"].startswith("RuntimeError: no checkpoint in ")
    assert "step-00000002" in found["error"] and "step-00000003" in found["error"]
    assert not found["moved"]


def test_an_empty_folder_loads_nothing(loads: dict[str, Any]) -> None:
    assert loads["empty"] == {"loaded": None, "error": None, "moved": False}


def test_another_number_of_ranks_or_stage_is_refused_with_both_numbers(
    two_saved: Path, loads: dict[str, Any], tmp_path: Path
) -> None:
    for rank in run("loaded", 2, tmp_path, runs={str(two_saved): 1}):
        found = rank[str(two_saved)]
        assert found["error"].startswith("ValueError") and not found["moved"]
        assert "world_size 1 and this run has 2" in found["error"]
    assert "stage 1 and this run has 2; set engine.stage" in loads["other stage"]["error"]


def test_leftovers_are_removed_and_an_interrupted_replacement_is_undone(
    loads: dict[str, Any],
) -> None:
    assert loads["leftovers"]["loaded"].state.step == 3
    names = sorted(path.name for path in (loads["root"] / "leftovers/checkpoints").iterdir())
    assert names == ["latest", "step-00000002", "step-00000003"]


def test_the_same_step_can_be_saved_again_and_zero_keeps_all(tmp_path: Path) -> None:
    names = run("saved", 1, tmp_path, steps=[1, 2, 2, 3], keep_last=0)[0]
    assert names == ["latest", "step-00000001", "step-00000002", "step-00000003"]
    assert (tmp_path / "checkpoints/latest").read_text() == "step-00000003"
    for path in checkpoints(tmp_path / "checkpoints"):
        verify(path)


def test_a_kill_during_a_save_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """SIGKILL of both ranks at several moments of a save: what has a name is whole."""
    interrupted = 0
    for delay in (0.0, 0.03, 0.1):
        folder = tmp_path / f"after-{delay}" / "checkpoints"
        processes = start("saving_until_killed", 2, folder.parent)
        deadline = time.monotonic() + 60
        while not (len(checkpoints(folder)) >= 2 and list(folder.glob("*.tmp"))):
            assert time.monotonic() < deadline, processes[0].communicate(timeout=5)[0]
            time.sleep(0.001)
        time.sleep(delay)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
        interrupted += len(list(folder.glob("*.tmp")))
        found = checkpoints(folder)
        assert len(found) >= 2
        for path in found:
            verify(path)
    assert interrupted, "no kill came during a save"


def test_keep_last_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="checkpoint.keep_last is -1"):
        CheckpointConfig(keep_last=-1)
