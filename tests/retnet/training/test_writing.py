"""A checkpoint on its way to the disk: what the threads of the ranks tell each other, and what of
the older ones goes for it."""

import time
from pathlib import Path

import torch

from retnet.training.housekeeping import checkpoints, name_of
from retnet.training.manifest import verify
from retnet.training.writing import Writing
from tests.small_disk import fill

MANIFEST = {"state": {}, "parameters": {}, "layout": {}, "extra": {}}


def _write(folder: Path, step: int, rank: int = 0, world_size: int = 1) -> Writing:
    """One rank's part of a small checkpoint, whose thread has ended."""
    temporary = folder / f"{name_of(step)}.0a.tmp"
    temporary.mkdir(exist_ok=True)
    how = dict(rank=rank, world_size=world_size, patience=60.0, keep=(2, 0))
    writing = Writing(temporary, folder / name_of(step), **how)
    writing.start({"x": torch.ones(1000)}, lambda: None, MANIFEST)
    writing.join()
    return writing


def test_later_checkpoints_that_are_not_good_take_no_place_of_good_ones(tmp_path: Path) -> None:
    """A run that passed over its newest goes on from an older one, and keeps two of its own."""
    for step in (1, 2, 9):
        assert _write(tmp_path, step).problem == ""
    (tmp_path / name_of(9) / "manifest.json").unlink()
    for step, left in ((3, [9, 3, 2]), (4, [9, 4, 3]), (9, [9, 4])):
        assert _write(tmp_path, step).problem == ""
        assert [path.name for path in checkpoints(tmp_path)] == [name_of(each) for each in left]
    verify(tmp_path / name_of(9))


def test_a_rank_that_cannot_even_say_so_costs_the_save_and_no_wait(small_disk: Path) -> None:
    temporary = small_disk / f"{name_of(1)}.0a.tmp"
    temporary.mkdir()
    fill(small_disk / "ballast")
    assert "No space left" in _write(small_disk, 1, rank=1, world_size=2).problem
    (small_disk / "ballast").unlink()
    began = time.monotonic()
    assert "rank 1" in _write(small_disk, 1, rank=0, world_size=2).problem
    assert time.monotonic() - began < 30.0, "rank 0 waited for the other's note"
    assert list(small_disk.iterdir()) == []
