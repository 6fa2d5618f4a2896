"""What is saved is what was there, and nothing that happens to a save harms an older one. Kills are
in tests/faults."""

from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.training.housekeeping import checkpoints
from retnet.training.manifest import read_manifest, verify
from retnet.training.saver import CheckpointConfig, OnFailure
from retnet.training.tensor_file import open_tensors
from tests.data.servers import KEYS, s3_server
from tests.retnet.training.processes import run
from tests.small_disk import small_disk

MODULE = "workers_saving"


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What several runs left that one process saved, one of them to a store."""
    folder = tmp_path_factory.mktemp("saves")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (KEYS | {"AWS_ENDPOINT_URL": s3_server().url}).items():
            patch.setenv(key, value)
        runs = {
            "two": {"steps": [1, 2, 3]},
            "all": {"steps": [1, 2, 2, 3], "keep_last": 0},
            "every": {"steps": [1, 2, 3, 4, 5], "keep_last": 1, "keep_every": 2},
            "at once": {"steps": [1, 2], "asynchronous": False},
            "copied": {"steps": [1, 2], "copy_to": f"s3://bucket/{folder.name}"},
        }
        return run("saved", 1, folder, module=MODULE, runs=runs)[0] | {"folder": folder}


def test_the_newest_are_kept_and_those_of_every_so_many_steps(saves: dict[str, Any]) -> None:
    kept = {"two": (2, 3), "all": (1, 2, 3), "every": (2, 4, 5), "at once": (1, 2)}
    for name, steps in kept.items():
        assert saves[name]["names"] == ["latest", *(f"step-0000000{step}" for step in steps)], name
        newest = saves["folder"] / name / "checkpoints/latest"
        assert newest.read_text() == saves[name]["names"][-1]
        for path in checkpoints(newest.parent):
            verify(path)


def test_every_save_is_told_of_once_with_its_seconds(saves: dict[str, Any]) -> None:
    told = [(news.kind, news.step) for news in saves["all"]["news"]]
    assert told == [("saved", step) for step in (1, 2, 2, 3)]
    for news in saves["all"]["news"]:
        assert news.seconds > 0.0 and news.stall > 0.0 and news.why == ""


def test_a_file_holds_each_number_once_and_a_manifest_names_all(saves: dict[str, Any]) -> None:
    path = saves["folder"] / "two/checkpoints/step-00000003"
    manifest = read_manifest(path)
    assert manifest["state"]["step"] == 3 and manifest["config"] == {"a": 1}
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", *manifest["files"]]
    sizes: dict[str, int] = {}
    for name in manifest["files"]:
        file = open_tensors(path / name)
        for key in file.names():
            name = key.rpartition("@")[0] or key
            sizes[name] = sizes.get(name, 0) + torch.Size(file.shape(key)).numel()
    for name, shape in manifest["parameters"].items():
        whole = torch.Size(shape).numel()
        kinds = [key for key in sizes if key.partition("/")[2] == name]
        assert {sizes[key] for key in kinds} == {whole}, name
        assert kinds == [f"buffer/{name}"] or len(kinds) == 3, name


def test_a_copy_in_a_store_is_gone_on_from_where_there_is_nothing_else(
    saves: dict[str, Any],
) -> None:
    found = saves["copied"]
    kinds = [(news.kind, news.step) for news in found["news"] if news.kind == "copied"]
    assert kinds[-1] == ("copied", 2)
    assert found["loaded"].state.step == 2 and found["brought"] == ["step-00000002"]
    assert found["loaded"].words.startswith("step-00000002 was brought from s3://bucket/")


def test_a_save_is_exact_as_of_its_step_while_the_training_goes_on(tmp_path: Path) -> None:
    found, other = run("exact", 2, tmp_path, module=MODULE)
    assert [news.step for news in found["news"]] == [2, 5]
    for step, name in ((2, "at the save"), (5, "later")):
        for key, value in found[name].items():
            assert torch.equal(found[step][key], value), (step, key)
    assert any(not torch.equal(found[2][key], value) for key, value in found[5].items())


def test_a_full_disk_costs_the_save_alone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as folder:
        rank, other = run("full_disk", 2, folder, module=MODULE)
    for step in (1, 2, 3):
        assert rank[step]["good"] == ["step-00000001"], step
        assert rank[step]["names"] == ["latest", "step-00000001"], "its room was not given back"
    for step in (2, 3):
        (news,) = rank[step]["news"]
        assert (news.kind, news.step) == ("save_failed", step)
        assert "No space left on device" in news.why
        assert news.why.endswith("step-00000001 stands")
    assert rank[2]["error"] == ""
    for found in (rank, other):
        assert "step-00000003 could not be saved: No space left on device" in found[3]["error"]
    for step in (4, 5):
        assert [news.kind for news in rank[step]["news"]] == ["saved"]
        assert rank[step]["good"] == [f"step-0000000{step}"], "one stays, the newest"


def test_the_config_is_checked_by_its_keys() -> None:
    assert CheckpointConfig(on_failure=OnFailure.stop).on_failure is OnFailure.stop
    for key, value in (("keep_last", -1), ("keep_every", -1), ("copy_timeout", 0.0)):
        with pytest.raises(ValueError, match=f"checkpoint.{key} is {value}"):
            CheckpointConfig(**{key: value})
