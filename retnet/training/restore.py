"""A checkpoint's numbers, put into an engine: each rank reads the slices that it owns, whoever
wrote them. Which checkpoint, and whether its files are sound, is decided before: `checkpoint.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from retnet.training.pieces import (
    Piece,
    buffers,
    pieces,
    scaler,
    set_counter,
    set_scaler,
    shapes,
    spread_masters,
)
from retnet.training.tensor_file import TensorFile, open_tensors

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

BUFFER = "buffer"
"How the names of buffers begin in a file, where those of pieces begin with their kind."


class _Stored(NamedTuple):
    """Neighboring elements of a weight or a moment, in a file."""

    start: int
    count: int
    file: TensorFile
    key: str


def restore(engine: DeepSpeedEngine, path: Path, manifest: dict[str, Any]) -> None:
    """Loads the verified checkpoint `path`, made in whatever layout, into the engine; collective.

    Weights, moments, the optimizer's counter, buffers and the loss scale are those that were saved,
    bit by bit; what the configuration asks of the optimizer stays as it is.

    Raises:
        ValueError: it is of another model; nothing was loaded.
        RuntimeError: its files do not hold what they should; nothing was loaded.
    """
    _check_shapes(path, manifest["parameters"], shapes(engine))
    stored: dict[str, list[_Stored]] = {}
    kept: dict[str, Tensor] = {}
    for name in sorted(manifest["files"]):
        file = open_tensors(path / name)
        for key in file.names():
            what, _, start = key.rpartition("@")
            if key.startswith(f"{BUFFER}/"):
                kept[key.removeprefix(f"{BUFFER}/")] = file.read(key)
            else:
                count = file.shape(key)[0]
                stored.setdefault(what, []).append(_Stored(int(start), count, file, key))
    owned = list(pieces(engine, whole=True))
    found = [_overlapping(piece, stored) for piece in owned]
    missing = [piece.key for piece, parts in zip(owned, found, strict=True) if parts is None]
    missing += [f"{BUFFER}/{name}" for name in buffers(engine) if name not in kept]
    if missing:
        raise RuntimeError(f"{path} does not hold all of {', '.join(missing[:3])}.")
    for piece, parts in zip(owned, found, strict=True):
        for first, last, source in parts:
            values = source.file.slice(source.key, first - source.start, last - source.start)
            piece.tensor[first - piece.start : last - piece.start].copy_(values)
    for name, buffer in buffers(engine).items():
        buffer.copy_(kept[name])
    set_counter(engine, manifest["updates"])
    if manifest["scaler"] is not None and scaler(engine) is not None:
        set_scaler(engine, manifest["scaler"])
    spread_masters(engine)


def _overlapping(
    piece: Piece, stored: dict[str, list[_Stored]]
) -> list[tuple[int, int, _Stored]] | None:
    """Where the elements of a piece are stored, from one to another of the flat parameter's; None
    where some are not."""
    end = piece.start + piece.tensor.numel()
    parts = []
    for source in stored.get(f"{piece.kind}/{piece.name}", []):
        first, last = max(source.start, piece.start), min(source.start + source.count, end)
        if first < last:
            parts.append((first, last, source))
    whole = sum(last - first for first, last, _ in parts) == end - piece.start
    return parts if whole else None


def _check_shapes(path: Path, saved: dict[str, list[int]], needed: dict[str, list[int]]) -> None:
    differing = [
        f"{name} {_words(saved.get(name))} there and {_words(needed.get(name))} here"
        for name in {**saved, **needed}
        if saved.get(name) != needed.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{path} is of another model: {', '.join(differing[:3])}{more}; set model.* and "
            "kernels.fused_projections as they were, or give the run another name."
        )


def _words(shape: list[int] | None) -> str:
    return "is missing" if shape is None else f"has the shape {shape}"
