"""What cannot be shared out evenly is answered with the numbers that can."""

import pytest

from data.config import DataConfig
from data.share import check_ranks


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "sentence"),
    [
        (36, 4, 3, r"data.streams=16 cannot .* over 3 ranks: start 1 ranks, or set .* of 3 "),
        (32, 4, 3, r"data.streams=16 cannot .* over 3 ranks: start 1, 2, 4 or 8 ranks, or set"),
        (20, 4, 2, r"=20 .*micro_batch_size=4 times 2 ranks: .* of 8, or micro_.* start 1 ranks"),
        (20, None, 8, r"global_batch_size=20 is no multiple of 8 ranks: .*, or start 1, 2 or 4 r"),
        (20, 3, 2, r"change global_batch_size to a multiple of 6, or micro_batch_size$"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(
    batch: int, micro: int | None, ranks: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_ranks(DataConfig(streams=16), batch, micro, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_streams_and_batch_of_48_go_over_many_numbers_of_ranks(ranks: int) -> None:
    check_ranks(DataConfig(streams=48), 48, 2, ranks)
    check_ranks(DataConfig(streams=48), 48, None, ranks)
