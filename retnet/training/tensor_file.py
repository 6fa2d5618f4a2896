"""Files of named tensors, in the safetensors format: written with a checksum in one pass, read by
slices, and nothing in them can be executed. What the tensors are, `pieces.py` knows.

Written by hand, so that a full disk is reported as what it is (an OSError with its number) and no
second copy of the bytes is made: 8 bytes with the length of the header, the header as JSON, the
tensors' bytes one after the other (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_AT_ONCE = 2**22
"Bytes hashed and then written: they are still in cache for the second of the two."


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Writes CPU tensors of any shape and waits until their bytes are on the disk; returns what a
    manifest says of the file, {"bytes", "sha256"}.

    Raises:
        OSError: the true one, as of a full disk; what there is of the file is left to the caller.
    """
    header: dict[str, Any] = {}
    total = 0
    for name, tensor in tensors.items():
        end = total + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [total, end],
        }
        total = end
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)  # the data begins at a multiple of 8, for those who map it
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for content in (struct.pack("<Q", len(words)) + words, *map(_bytes, tensors.values())):
            for start in range(0, len(content), _AT_ONCE):
                digest.update(content[start : start + _AT_ONCE])
                stream.write(content[start : start + _AT_ONCE])
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": 8 + len(words) + total, "sha256": digest.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor; a view where it is contiguous."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


class TensorFile:
    """A file that was written by `write_tensors`, read lazily."""

    def __init__(self, file: Path) -> None:
        self._opened = safe_open(file, framework="pt")

    def names(self) -> list[str]:
        """What is in it."""
        return list(self._opened.keys())

    def shape(self, name: str) -> list[int]:
        """Of one tensor, without reading it."""
        return self._opened.get_slice(name).get_shape()

    def read(self, name: str) -> Tensor:
        """One tensor, whole, on the CPU."""
        return self._opened.get_tensor(name)

    def slice(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` - 1 of a tensor of one dimension, on the CPU."""
        return self._opened.get_slice(name)[start:stop]


def open_tensors(file: Path) -> TensorFile:
    """The file, of which no more than the header is read.

    Raises:
        RuntimeError: it is not such a file.
    """
    try:
        return TensorFile(file)
    except Exception as error:  # the library has a class of its own, and OSError of its own making
        raise RuntimeError(f"{file} is no file of tensors: {error}.") from error
