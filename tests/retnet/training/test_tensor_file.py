"""A file of tensors holds what was put into it, for us and for whoever reads safetensors."""

import errno
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retnet.training.tensor_file import open_tensors, write_tensors

TENSORS = {
    "vector@0": torch.arange(1000, dtype=torch.float32),
    "not contiguous": torch.arange(12, dtype=torch.float32).view(3, 4).t(),
    "scalar": torch.tensor(0.5, dtype=torch.float64),
    "half": torch.randn(5).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "counts": torch.tensor([[1, 2], [3, 2**40]]),
    "nothing": torch.empty(0),
}


def test_what_is_written_is_read_by_anybody_and_the_checksum_is_the_files(tmp_path: Path) -> None:
    file = tmp_path / "rank-00000.safetensors"
    said = write_tensors(file, TENSORS)
    content = file.read_bytes()
    assert said == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_file_is_read_by_slices_and_whole(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", TENSORS)
    file = open_tensors(tmp_path / "file")
    assert set(file.names()) == set(TENSORS)
    assert torch.equal(file.slice("vector@0", 10, 13), torch.tensor([10.0, 11.0, 12.0]))
    for name, tensor in TENSORS.items():
        assert file.shape(name) == list(tensor.shape)
        assert torch.equal(file.read(name), tensor)


def test_a_device_without_room_is_reported_as_what_it_is() -> None:
    with pytest.raises(OSError) as caught:
        write_tensors(Path("/dev/full"), TENSORS)
    assert caught.value.errno == errno.ENOSPC


def test_what_is_no_such_file_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a pickle")
    write_tensors(tmp_path / "cut", TENSORS)
    with (tmp_path / "cut").open("r+b") as stream:
        stream.truncate(5000)
    for name in ("a pickle", "cut", "missing"):
        with pytest.raises(RuntimeError, match=f"{name} is no file of tensors"):
            open_tensors(tmp_path / name)
