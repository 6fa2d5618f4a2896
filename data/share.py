"""How rows are shared out over the ranks, and which numbers of ranks they can be shared out over.

Global row i is rank i mod world_size's. Reading the rows is data/loader.py's.
"""

from typing import NamedTuple

from data.config import DataConfig


class Share(NamedTuple):
    """What of the rows is one rank's, and in which pieces; sizes in rows."""

    sequence_length: int
    """Tokens a row predicts."""
    global_batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows_per_step(self) -> int:
        """Of this rank."""
        return self.global_batch_size // self.world_size


def check_ranks(
    config: DataConfig, global_batch_size: int, micro_batch_size: int | None, world_size: int
) -> None:
    """Raise a ValueError unless streams and batch can be shared out evenly over the ranks.

    micro_batch_size None: a rank's whole share.
    """
    streams = config.streams
    even = [count for count in range(1, streams + 1) if streams % count == 0]
    fits = [count for count in even if global_batch_size % (count * (micro_batch_size or 1)) == 0]
    if streams % world_size:
        raise ValueError(
            f"data.streams={streams} cannot be shared out evenly over {world_size} ranks: start "
            f"{_numbers(fits or even)} ranks, or set data.streams to a multiple of {world_size} "
            "(a new run)"
        )
    if global_batch_size % ((micro_batch_size or 1) * world_size):
        whole = f"micro_batch_size={micro_batch_size} times " if micro_batch_size else ""
        raise ValueError(
            f"global_batch_size={global_batch_size} is no multiple of {whole}{world_size} ranks: "
            f"change global_batch_size to a multiple of {(micro_batch_size or 1) * world_size}"
            + (", or micro_batch_size" if micro_batch_size else "")
            + (f", or start {_numbers(fits)} ranks" if fits else "")
        )


def _numbers(counts: list[int]) -> str:
    """1, 2 or 4."""
    *most, last = map(str, counts)
    return f"{', '.join(most)} or {last}" if most else last
