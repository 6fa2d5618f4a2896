"""Killed runs go on bit by bit; and runs go on on other ranks and in other layouts."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Runs
from tests.test_run import step_reached


def tensors(*files: Path) -> dict[str, torch.Tensor]:
    """All of the files' tensors."""
    assert files
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_runs(runs: Runs, *names: str) -> None:
    """Two runs of ten steps with the same lines, and the same numbers in their last checkpoint and
    their export."""
    ours, expected = ([line for line in runs.metrics(n) if "loss" in line] for n in names)
    assert ours == expected
    assert [line["step"] for line in ours] == list(range(1, 11))
    folders = [runs.folder / "runs" / name for name in names]
    for pattern in ("checkpoints/step-00000010/rank-*.safetensors", "export/model.safetensors"):
        assert_same(*(tensors(*sorted(folder.glob(pattern))) for folder in folders))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equality to the bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# 12 rows and 12 streams can be shared out over 2 ranks and over 3.
RUN = dict(engine="zero1", global_batch_size=12, data__streams=12, logging__sample_tokens=0)


@pytest.fixture(scope="module")
def whole(runs):
    """Ten uninterrupted steps of two ranks, and every checkpoint of them; the name."""
    runs.finished(2, launched=False, name="whole", checkpoint__keep_last=0, **RUN)
    return "whole"


def test_resume_is_exact(runs, whole):
    """10 steps equal 4 steps, SIGKILL, and the same command again: every metric, weight and
    moment, bit by bit. The killed run also evaluates, which must change nothing. With dropout, in
    bfloat16 and at every stage in tests/faults/test_elastic.py."""
    settings = dict(name="killed", evaluate_every=3, **RUN)

    def saved_and_beyond(folder: Path) -> bool:  # it writes beside the steps
        return (folder / "checkpoints/latest").exists() and step_reached(7)(folder)

    with runs.at(saved_and_beyond, 2, **settings) as ranks:
        for rank in ranks:
            rank.send_signal(signal.SIGKILL)
    assert not (runs.folder / "runs/killed/export").exists()
    runs.finished(2, launched=False, **settings)
    resumed = [event for event in runs.events("killed") if event["event"] == "resumed"]
    # The kill comes after step 7's line; the save after step 8 may just have been quicker.
    assert [event["step"] for event in resumed] in ([4], [8])
    assert_same_runs(runs, "killed", whole)


def test_a_run_goes_on_with_other_ranks_in_another_layout(runs, whole):
    """Two ranks at ZeRO 1, and from their checkpoint of step 4 on three ranks at ZeRO 3: the same
    losses within 1e-5 of their size, float32 sums in another order. Nothing is converted."""
    names = "three", whole
    folders = [runs.folder / "runs" / name for name in names]
    shutil.copytree(folders[1], folders[0])
    for step in (8, 10):
        shutil.rmtree(folders[0] / f"checkpoints/step-{step:08d}")
    said = runs.finished(3, launched=False, name="three", **RUN | dict(engine="zero3"))
    assert "made by 2 ranks at stage 1" in said and "goes on with 3 ranks at stage 3" in said, said
    resumed = [event for event in runs.events("three") if event["event"] == "resumed"]
    assert [event["step"] for event in resumed] == [4]
    ours, expected = (torch.tensor(runs.losses(name)).double() for name in names)
    assert len(ours) == 10 and torch.equal(ours[:4], expected[:4])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    ours, expected = ([line.get("tokens") for line in runs.metrics(name)] for name in names)
    assert ours == expected
