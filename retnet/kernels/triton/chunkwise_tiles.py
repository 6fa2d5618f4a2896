"""How large the tiles of chunkwise retention are, by architecture, head widths and chunk: one fixed
table, no search at the start of a run.

Nothing here changes a result beyond rounding. The sizes are reasoned, not measured. Not here:
kernels.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton

CHUNKS = (16, 32, 64, 128, 256)
"Tokens of a chunk that the kernels know."
SHARED_MEMORY = 64 * 1024
"Bytes that a program may have on every part these kernels were translated for; they need 24 KiB."
WIDE_SHARED_MEMORY = 160 * 1024


class Tiles(NamedTuple):
    """How one kernel cuts its work. Steps are those of 16-bit operands; wider ones get fewer."""

    rows: int
    "Tokens of the products; rows of the state in the scan."
    columns: int
    step: int
    "What one iteration takes of the dimension that is summed over."
    warps: int
    stages: int
    "Iterations whose operands are in shared memory at once."


class Config(NamedTuple):
    """The tiles of every launch for one shape of head. Rows of all products are the same."""

    scores: Tiles
    "Square; 1, 2 or 4 times its rows make a chunk. Forward and backward."
    states: Tiles
    "Forward and backward."
    values: Tiles
    "What is V wide: the output, and the gradient of v."
    keys: Tiles
    "What is K wide: the gradients of q and k."


# Large tiles, because operands come from the L2 cache, of which tiles of 128 x 128 ask a third more
# bytes for the same products.
_LARGE = Tiles(128, 256, 64, 8, 3)  # 144 KiB of shared memory for 16-bit operands
_TALL = Tiles(256, 128, 64, 8, 3)
_WIDE = Tiles(128, 128, 64, 8, 3)  # 96 KiB: two programs at once on an H100
_NARROW = Tiles(128, 64, 64, 4, 4)  # the same, for widths that end soon after a multiple of 64
_SMALL = Tiles(64, 64, 32, 4, 3)

# What serves every shape: "wide" for A100, H100, B200, "small" for consumer cards and MI300, whose
# programs have 64 to 100 KiB.
ANY = {
    "wide": Config(_WIDE, _WIDE, _WIDE, _WIDE),
    "small": Config(_SMALL, _SMALL, _SMALL, _SMALL),
}

# (architecture, K, V, C) -> what serves these better in bfloat16. 428 and 432 are 7 times 64 less 4
# and 5 %, 160 is 5 times 32.
CONFIGS = {
    ("sm90", 64, 64, 128): Config(_WIDE, _NARROW, _NARROW, _NARROW),
    ("sm90", 64, 128, 128): Config(_WIDE, Tiles(64, 128, 64, 4, 4), _WIDE, _NARROW),
    ("sm90", 128, 128, 128): Config(_WIDE, _WIDE, _WIDE, _WIDE),
    ("sm90", 128, 256, 128): Config(_WIDE, _WIDE, _WIDE, _WIDE),
    ("sm90", 160, 320, 128): Config(
        Tiles(128, 128, 32, 8, 4), Tiles(64, 64, 64, 4, 4), _NARROW, _NARROW
    ),
    ("sm90", 256, 256, 256): Config(_WIDE, _TALL, _LARGE, _LARGE),
    ("sm90", 256, 428, 256): Config(_WIDE, Tiles(256, 64, 64, 8, 3), _NARROW, _LARGE),
    ("sm90", 256, 432, 256): Config(_WIDE, Tiles(256, 64, 64, 8, 3), _NARROW, _LARGE),
    ("sm90", 256, 512, 256): Config(_WIDE, _TALL, _LARGE, _LARGE),
}


def missing_tiles(device: torch.device) -> str | None:
    """Why the kernels do not fit `device`, as half a sentence; None when they do."""
    if device.type != "cuda":
        return None  # Triton's interpreter has all the memory it wants
    of_device = torch.cuda.get_device_properties(device)
    if torch.version.hip is None and of_device.major < 8:
        return (
            f"the Triton kernels of retention need compute capability 8.0 and {of_device.name} has "
            f"{of_device.major}.{of_device.minor}"
        )
    if _shared_memory(device) < SHARED_MEMORY:
        return (
            f"the Triton kernels of retention need {SHARED_MEMORY // 1024} KiB of shared memory a "
            f"program and {of_device.name} gives {_shared_memory(device) // 1024}"
        )
    return None


def config_for(
    device: torch.device,
    key_dim: int,
    value_dim: int,
    chunk: int,
    dtype: torch.dtype,
    states_dtype: torch.dtype,
) -> Config:
    """The tiles for heads [K, V] in chunks of `chunk` tokens, operands of `dtype`, and states."""
    architecture, family = _architecture(device)
    config = ANY[family]
    if dtype == torch.bfloat16:
        config = CONFIGS.get((architecture, key_dim, value_dim, chunk), config)
    elif dtype == torch.float32:  # its products take twice the memory and many more registers
        config = ANY["small"]
    widest = triton.next_power_of_2
    rows = max(min(config.scores.rows, chunk), chunk // 4)

    def fit(tiles: Tiles, most: tuple[int, int, int], dtype: torch.dtype) -> Tiles:
        sizes = tiles.rows, tiles.columns, tiles.step * 2 // dtype.itemsize
        fitting = (max(16, min(size, limit)) for size, limit in zip(sizes, most, strict=True))
        return Tiles(*fitting, tiles.warps, tiles.stages)

    # a step over scores takes columns that a tile of them covers
    return Config(
        fit(config.scores, (rows, rows, chunk), dtype)._replace(rows=rows, columns=rows),
        fit(config.states, (widest(key_dim), widest(value_dim), chunk), dtype),
        fit(config.values, (rows, widest(value_dim), rows), states_dtype)._replace(rows=rows),
        fit(config.keys, (rows, widest(key_dim), rows), states_dtype)._replace(rows=rows),
    )


def chunk_for(wanted: int, time: int) -> int:
    """The chunk that is taken where `wanted` tokens are asked for and `time` are there."""
    most = max(CHUNKS[0], min(wanted, triton.next_power_of_2(max(time, 1))))
    return max(size for size in CHUNKS if size <= most)


@cache
def _architecture(device: torch.device) -> tuple[str, str]:
    """The name that the table knows a device by, and its family."""
    if device.type != "cuda":
        return "sm90", "wide"
    of_device = torch.cuda.get_device_properties(device)
    name = f"sm{of_device.major}{of_device.minor}"
    if torch.version.hip is not None:
        name = of_device.gcnArchName.split(":")[0]
    return name, "wide" if _shared_memory(device) >= WIDE_SHARED_MEMORY else "small"


def _shared_memory(device: torch.device) -> int:
    """Bytes that one program may have."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; in the interpreter so few that long sequences are cut there, too."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count
